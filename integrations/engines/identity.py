"""Who a request of an engine belongs to, as the headers of its HTTP request say."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Mapping

from nae_monitor.records import Request, TraceRef

TRUSTED = "nae_monitor"  # the key that clients cannot set and the server process does
MAX_CHARS = 256  # of an id, a session, a tenant; workers refuse what is much longer
HEADERS: Mapping[bytes, str] = {
    b"x-session-id": "session",
    b"x-tenant-id": "tenant",
    b"traceparent": "traceparent",
}
_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$")
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """What of ASGI headers names the request; the last of several wins."""
    return {
        HEADERS[name.lower()]: value.decode("latin-1")[:MAX_CHARS]
        for name, value in headers
        if name.lower() in HEADERS
    }


def bounded(value: str) -> str:
    """A text that a client chose, as it may travel: short, and valid Unicode.

    Texts that differ stay different: the end of one that is cut is a digest of the whole.
    """
    if len(value) <= MAX_CHARS and (value.isascii() or not _SURROGATE.search(value)):
        return value
    whole = value.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(whole, digest_size=16).hexdigest()
    front = _SURROGATE.sub("?", value[: MAX_CHARS - len(digest) - 1])
    return f"{front}~{digest}"


def trace_of(traceparent: object) -> TraceRef | None:
    """The span that a W3C ``traceparent`` names; None where it names none."""
    match = _TRACEPARENT.match(traceparent) if isinstance(traceparent, str) else None
    if match is None or not (int(match[1], 16) and int(match[2], 16)):
        return None
    return TraceRef(int(match[1], 16), int(match[2], 16), int(match[3], 16))


def request_under(
    identity: Mapping[str, str], engine_id: str, group_id: str, model: str
) -> Request:
    """The request as the stages know it.

    Args:
        identity: ``session``, ``tenant`` and ``traceparent``, each where it is known.
        engine_id: of the engine; :func:`bounded`, it is the request's.
        group_id: of the caller, who may have asked for several answers at once.
        model: the target's name.
    """
    session, tenant = identity.get("session"), identity.get("tenant")
    return Request(
        request_id=bounded(engine_id),
        group_id=bounded(group_id),
        model=model,
        session_id=None if session is None else bounded(session),
        tenant=None if tenant is None else bounded(tenant),
        trace=trace_of(identity.get("traceparent")),
        started_unix_ns=time.time_ns(),
    )
