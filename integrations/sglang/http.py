"""Carries tenant, session and trace context from HTTP headers to SGLang's scheduler.

The scheduler sees a request's sampling parameters. The server process puts the headers into their
``custom_params``, under a key that clients cannot set: what they put there is taken out first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from nae_monitor.integrations.engines.identity import TRUSTED, read_headers

log = logging.getLogger("nae_monitor")


def carry_headers(
    plain: Callable[..., Any], manager: Any, obj: Any, request: Any = None, **kwargs: Any
) -> Any:
    """Around ``TokenizerManager.generate_request``.

    ``request`` is None outside an HTTP request, where the caller is the operator's own program
    and may set the key itself.
    """
    if request is not None and hasattr(obj, "sampling_params"):
        try:
            obj.sampling_params = with_identity(
                obj.sampling_params, read_headers(request.headers.raw)
            )
        except Exception as error:  # noqa: BLE001 - the server must not notice
            log.warning("a request's headers were lost: %s", type(error).__name__)
    return plain(manager, obj, request, **kwargs)


def with_identity(params: Any, identity: Mapping[str, str]) -> Any:
    """Sampling parameters (one mapping, a list of them, or none) with the headers in them."""
    if isinstance(params, list):
        return [with_identity(one, identity) for one in params]
    given = (params or {}).get("custom_params") or {}
    kept = {key: value for key, value in given.items() if key != TRUSTED}
    if not identity and kept == given:
        return params
    return {
        **(params or {}),
        "custom_params": {**kept, TRUSTED: dict(identity)} if identity else kept,
    }
