"""Who a request of the engine belongs to."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from nae_monitor.records import Request, TraceRef

TRUSTED = "nae_monitor"  # of extra_args; clients cannot set it, the server process does
CLIENT = {"session": "nae_session", "tenant": "nae_tenant", "traceparent": "nae_traceparent"}
MAX_CHARS = 256
_ENGINE_ID = re.compile(
    r"^(?:\d+_)?(?:(?:chatcmpl|resp)-(?P<chat>.+)|cmpl-(?P<completion>.+)-\d+)-[0-9a-f]{8}$"
)
_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$")


def group_of(engine_id: str) -> str:
    """The caller's id (``X-Request-Id``) in an id of the engine; the whole id if none is in it.

    The server calls a request ``chatcmpl-ID-8hex`` (``cmpl-ID-INDEX-8hex`` for completions), and
    ``N_…`` where one request asks for several answers.
    """
    match = _ENGINE_ID.match(engine_id)
    return (match["chat"] or match["completion"]) if match else engine_id


def trace_of(traceparent: object) -> TraceRef | None:
    """The span that a W3C ``traceparent`` names; None where it names none."""
    match = _TRACEPARENT.match(traceparent) if isinstance(traceparent, str) else None
    if match is None or not (int(match[1], 16) and int(match[2], 16)):
        return None
    return TraceRef(int(match[1], 16), int(match[2], 16), int(match[3], 16))


def read_identity(extra_args: Mapping[str, Any] | None) -> Mapping[str, str]:
    """``session``, ``tenant`` and ``traceparent``: from headers, else as the client says."""
    given = extra_args or {}
    trusted = given.get(TRUSTED)
    found = {name: given[key] for name, key in CLIENT.items() if key in given}
    found.update(trusted if isinstance(trusted, Mapping) else {})
    return {name: value[:MAX_CHARS] for name, value in found.items() if isinstance(value, str)}


def request_of(engine_id: str, extra_args: Mapping[str, Any] | None, model: str) -> Request:
    """The request as the stages know it."""
    identity = read_identity(extra_args)
    return Request(
        request_id=engine_id,
        group_id=group_of(engine_id),
        model=model,
        session_id=identity.get("session"),
        tenant=identity.get("tenant"),
        trace=trace_of(identity.get("traceparent")),
        started_unix_ns=time.time_ns(),
    )
