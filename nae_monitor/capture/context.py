"""Who a generation belongs to: request, session, tenant and trace, carried by a context variable.

A scope belongs to the thread (or asyncio task) that entered it. A thread started inside a scope
does not inherit it, unless it is started with ``contextvars.copy_context().run``.

How sequences are named:

- one id ``r`` and one sequence: ``r``; several sequences: ``r#0``, ``r#1``, …
- a sequence of ids names the prompt rows: ``a``, ``b``; several sequences per prompt: ``a#0``, …
- without an id, or without a scope: a fresh UUID in the place of ``r``
- a further ``generate`` in the same scope that continues the cache of the one before carries on
  with the same names; any other gets ``/2``, ``/3``, … behind the id: ``r/2``, ``r/2#0``

``Request.group_id`` is always the id as the caller gave it.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from opentelemetry import trace as otel

from nae_monitor.records import EMPTY, Request, TraceRef


@dataclass(frozen=True, eq=False, slots=True)
class Turn:
    """What one ``generate`` left behind, for a next one that continues its cache."""

    requests: tuple[Request, ...]
    token_ids: NDArray[np.int64]  # [S, C], padding included
    real: NDArray[np.bool_]  # [S, C], False at padding


class RequestContext:
    """The identity that generations under one scope share. Made by :func:`request_scope`."""

    def __init__(
        self,
        request_id: str | Sequence[str] | None = None,
        session_id: str | None = None,
        tenant: str | None = None,
        trace: TraceRef | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        if request_id is None:
            request_id = uuid.uuid4().hex
        self.request_ids = (request_id,) if isinstance(request_id, str) else tuple(request_id)
        self.per_prompt = not isinstance(request_id, str)
        self.session_id = session_id
        self.tenant = tenant
        self.trace = trace
        self.attributes = MappingProxyType(dict(attributes)) if attributes else EMPTY
        self.last_turn: Turn | None = None
        self._turns = 0
        self._lock = threading.Lock()

    def requests(self, prompts: int, per_prompt: int, model: str) -> tuple[Request, ...]:
        """New requests for ``prompts * per_prompt`` sequences, in the order of the batch.

        A batch with more prompts than ids names the rows left over by fresh UUIDs.
        """
        with self._lock:
            self._turns += 1
            turn = f"/{self._turns}" if self._turns > 1 else ""
        if self.per_prompt:
            groups = list(self.request_ids[:prompts])
            groups += [uuid.uuid4().hex for _ in range(prompts - len(groups))]
            names = [
                (f"{g}{turn}#{i}" if per_prompt > 1 else f"{g}{turn}", g)
                for g in groups
                for i in range(per_prompt)
            ]
        else:
            group, total = self.request_ids[0], prompts * per_prompt
            base = f"{group}{turn}"
            names = [(f"{base}#{i}" if total > 1 else base, group) for i in range(total)]
        return tuple(self._request(name, group, model) for name, group in names)

    def continued(self, requests: Sequence[Request]) -> tuple[Request, ...]:
        """The same requests in a further turn, under the span that is current now."""
        return tuple(self._request(r.request_id, r.group_id, r.model) for r in requests)

    def _request(self, request_id: str, group_id: str, model: str) -> Request:
        return Request(
            request_id=request_id,
            group_id=group_id,
            model=model,
            session_id=self.session_id,
            tenant=self.tenant,
            trace=self.trace or current_trace(),
            started_unix_ns=time.time_ns(),
            attributes=self.attributes,
        )


_current: ContextVar[RequestContext | None] = ContextVar("nae_monitor_request", default=None)


@contextmanager
def request_scope(
    request_id: str | Sequence[str] | None = None,
    session_id: str | None = None,
    tenant: str | None = None,
    trace: TraceRef | None = None,
    attributes: Mapping[str, str] | None = None,
) -> Iterator[RequestContext]:
    """Name every generation of this thread inside the block.

    Args:
        request_id: one id, or one per prompt row; None: a fresh UUID (read it from the context).
        session_id: the conversation it belongs to.
        tenant: on whose behalf it runs.
        trace: the span to attach alerts to; None: the OpenTelemetry span current at ``generate``.
        attributes: further ``request.KEY`` fields for rules.

    Uniqueness of ids over scopes is the caller's part.
    """
    context = RequestContext(request_id, session_id, tenant, trace, attributes)
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


def current_context() -> RequestContext:
    """The scope's context, or a fresh anonymous one outside any scope."""
    return _current.get() or RequestContext()


def scope_context() -> RequestContext | None:
    """The scope's context; None outside any scope."""
    return _current.get()


def current_trace() -> TraceRef | None:
    """The identity of the current OpenTelemetry span, None where there is none."""
    span = otel.get_current_span().get_span_context()
    if not span.is_valid:
        return None
    return TraceRef(span.trace_id, span.span_id, int(span.trace_flags))
