"""Carries tenant, session and trace context from HTTP headers to the engine's workers.

The workers see a request's sampling parameters and nothing else of it. So the server process puts
the headers into ``extra_args`` under a key that clients cannot set (``vllm_xargs`` end up in the
same mapping, so whatever a client put there is taken out first).
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

from nae_monitor.integrations.engines.identity import TRUSTED, read_headers

log = logging.getLogger("nae_monitor")

_identity: ContextVar[Mapping[str, str] | None] = ContextVar("nae_monitor_identity", default=None)
Scope = MutableMapping[str, Any]


class IdentityMiddleware:
    """ASGI: remembers a request's headers for the task that serves it; changes nothing."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope.get("type") == "http":
            _identity.set(read_headers(scope.get("headers", ())))
        await self._app(scope, receive, send)


def carry_headers() -> None:
    """Wrap ``AsyncLLM``: a server's app is given the middleware, a request its headers."""
    from vllm.v1.engine.async_llm import AsyncLLM

    start, add = AsyncLLM.__init__, AsyncLLM.add_request

    @functools.wraps(start)
    def started(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        try:
            _watch_apps()
        except Exception as error:  # noqa: BLE001 - the server must not notice
            log.warning("HTTP headers are not carried to requests: %s", type(error).__name__)

    @functools.wraps(add)
    async def add_request(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        try:
            params = with_identity(params, _identity.get())
        except Exception as error:  # noqa: BLE001 - the server must not notice
            log.warning("a request's headers were lost: %s", type(error).__name__)
        return await add(self, request_id, prompt, params, *args, **kwargs)

    AsyncLLM.__init__, AsyncLLM.add_request = started, add_request


def _watch_apps() -> None:
    """Have the server's app, which is built after the engine, run behind the middleware."""
    entry = sys.modules.get("vllm.entrypoints.launchers.api_server.entry")
    if entry is None or hasattr(entry.build_app, "__wrapped__"):
        return  # no server, or a second engine of the same one
    build = entry.build_app

    @functools.wraps(build)
    def build_app(*args: Any, **kwargs: Any) -> Any:
        app = build(*args, **kwargs)
        try:
            put_in_front(app)
        except Exception as error:  # noqa: BLE001 - the server must not notice
            log.warning("HTTP headers are not carried to requests: %s", type(error).__name__)
        return app

    entry.build_app = build_app  # type: ignore[attr-defined]


def put_in_front(app: Any) -> None:
    """Have a Starlette app run behind the middleware, also one whose middleware stands already."""
    if app.middleware_stack is None:
        app.add_middleware(IdentityMiddleware)
    else:
        app.middleware_stack = IdentityMiddleware(app.middleware_stack)


def with_identity(params: Any, identity: Mapping[str, str] | None) -> Any:
    """Sampling parameters with the headers in them, and without what a client put in their place.

    ``identity`` is None outside an HTTP request, where the caller is the operator's own program
    and may set the key itself.
    """
    if identity is None or not hasattr(params, "extra_args"):
        return params
    kept = {k: v for k, v in (params.extra_args or {}).items() if k != TRUSTED}
    if not identity and kept == (params.extra_args or {}):
        return params
    changed = params.clone()
    changed.extra_args = {**kept, TRUSTED: dict(identity)} if identity else kept
    return changed
