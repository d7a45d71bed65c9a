"""An alert as one event: CloudEvents 1.0 attributes around an OCSF 1.8.0 Detection Finding.

Sources: CloudEvents 1.0.2 with the partitioning, distributed-tracing, sequence and severity
extensions and its Kafka binding; for the finding :mod:`nae_monitor.alert.ocsf`.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import orjson

from nae_monitor.alert.ocsf import OCSF_VERSION, finding_of, trace_ids
from nae_monitor.alert.privacy import ContentPolicy, RedactedAlert
from nae_monitor.records import Alert, Request, Severity

EVENT_TYPE = "io.nae_monitor.alert.v1"
DATA_SCHEMA = f"https://schema.ocsf.io/{OCSF_VERSION}/classes/detection_finding"
MAX_ATTRIBUTE_CHARS = 256

SEVERITY_NUMBER = {  # OpenTelemetry log severity, which the CloudEvents extension uses too
    Severity.INFORMATIONAL: 9,
    Severity.LOW: 10,
    Severity.MEDIUM: 13,
    Severity.HIGH: 17,
    Severity.CRITICAL: 21,
}
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """One event, ready for either CloudEvents mode. Content is already redacted."""

    attributes: Mapping[str, str | int]  # CloudEvents context attributes, without prefix
    data: Mapping[str, Any]  # the OCSF finding, plain JSON values
    severity: Severity
    topic: str = ""  # of Kafka; "": the sink's own

    @property
    def key(self) -> bytes:
        """The Kafka key: the conversation's id, or its keyed hash."""
        return _utf8(str(self.attributes["partitionkey"]))

    def value(self) -> bytes:
        """Binary mode: the OCSF finding as UTF-8 JSON."""
        return to_json(self.data)

    def headers(self) -> list[tuple[str, bytes]]:
        """Binary mode: the Kafka headers."""
        pairs = [(f"ce_{name}", _utf8(str(value))) for name, value in self.attributes.items()]
        return [("content-type", b"application/json"), *pairs]

    def structured(self) -> dict[str, Any]:
        """Structured mode: attributes and data in one JSON object."""
        return {**self.attributes, "datacontenttype": "application/json", "data": self.data}


def to_json(value: Any) -> bytes:
    """Compact UTF-8 JSON in one line; text that is not valid Unicode is replaced.

    Raises:
        ValueError: it holds what JSON cannot carry.
    """
    try:
        return orjson.dumps(value)
    except TypeError:  # text that is not valid Unicode, or a number of more than 64 bits
        return _utf8(_JSON.encode(value))


def to_event(alert: RedactedAlert, policy: ContentPolicy) -> AlertEvent:
    """Build the event of an alert; ``policy`` is the one the alert was redacted under."""
    event_id = occurrence_id(alert)
    return AlertEvent(
        attributes=_attributes(alert, event_id, policy),
        data=finding_of(alert, event_id, str, policy.mode),
        severity=alert.severity,
    )


def redacted_event(alert: Alert, policy: ContentPolicy) -> AlertEvent:
    """The same, of an alert that was not redacted: in one step, without a record in between."""
    event_id = occurrence_id(alert)
    return AlertEvent(
        attributes=_attributes(alert, event_id, policy),
        data=finding_of(alert, event_id, policy.showing(), policy.mode),
        severity=alert.severity,
    )


def occurrence_id(alert: Alert) -> str:
    """``ce_id``: the alert's id and the start of its request, hashed.

    The same request judged twice (a redelivered message, a restarted worker) gives the same id,
    so consumers drop the repeat; a later request that reuses an earlier request's id does not.
    """
    name = f"{alert.alert_id}/{alert.request.started_unix_ns}"
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


class _Epoch:
    """The start of this process in Unix nanoseconds, as far as sequences go by it."""

    def __init__(self) -> None:
        self.unix_ns = time.time_ns()

    def renew(self) -> None:
        self.unix_ns = max(self.unix_ns + 1, time.time_ns())


_EPOCH = _Epoch()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_EPOCH.renew)  # its alerts count from the parent's number


def sequence_epoch() -> int:
    """What every ``ce_sequence`` of this process begins with, in Unix nanoseconds."""
    return _EPOCH.unix_ns


def later_than_sequences_of(epoch: int) -> None:
    """Let further sequences of this process sort behind those of an earlier one."""
    _EPOCH.unix_ns = max(_EPOCH.unix_ns, epoch + 1)


def sequence_text(sequence: int) -> str:
    """``ce_sequence``: sorts as text, across restarts of the process too."""
    return f"{_EPOCH.unix_ns:020d}.{sequence:012d}"


def conversation_id(request: Request) -> str:
    """The session the request belongs to, or the request itself where there is none."""
    return request.session_id or request.request_id


def _attributes(alert: Alert, event_id: str, policy: ContentPolicy) -> dict[str, str | int]:
    request = alert.request
    key = conversation_id(request)
    attributes: dict[str, str | int] = {
        "specversion": "1.0",
        "id": event_id,
        "source": _source(request.model),
        "type": EVENT_TYPE,
        "time": datetime.fromtimestamp(alert.time_unix_ns / 1e9, UTC).isoformat(),
        "subject": _printable(request.request_id) or "-",
        "dataschema": DATA_SCHEMA,
        "partitionkey": key if key and key == _printable(key) else policy.digest(key),
        "sequence": sequence_text(alert.sequence),
        "severitytext": alert.severity.upper(),
        "severitynumber": SEVERITY_NUMBER[alert.severity],
    }
    if alert.routes:
        attributes["routes"] = ",".join(alert.routes)
    if request.trace is not None:
        trace_id, span_id = trace_ids(request.trace)
        attributes["traceparent"] = f"00-{trace_id}-{span_id}-{request.trace.trace_flags:02x}"
    return attributes


@lru_cache(maxsize=64)
def _source(model: str) -> str:
    return "/nae-monitor/" + quote(_utf8(model)[:MAX_ATTRIBUTE_CHARS])


def _printable(text: str) -> str:
    """As CloudEvents wants attribute strings: no control characters, bounded."""
    kept = text[:MAX_ATTRIBUTE_CHARS]
    if not kept.isprintable():
        kept = "".join(c for c in kept if c.isprintable())
    return _utf8(kept).decode()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")
