"""An alert as one event: CloudEvents 1.0 attributes around an OCSF 1.8.0 Detection Finding.

Sources: CloudEvents 1.0.2 with the partitioning, distributed-tracing, sequence and severity
extensions and its Kafka binding; OCSF 1.8.0, class 2004 with the ``security_control`` profile.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import quote

from nae_monitor.alert.privacy import ContentPolicy, RedactedAlert
from nae_monitor.records import Alert, Evidence, Finding, Request, Severity, StopOutcome, TraceRef

EVENT_TYPE = "io.nae_monitor.alert.v1"
OCSF_VERSION = "1.8.0"
DATA_SCHEMA = f"https://schema.ocsf.io/{OCSF_VERSION}/classes/detection_finding"
MAX_ATTRIBUTE_CHARS = 256

try:
    PACKAGE_VERSION = version("nae-monitor")
except PackageNotFoundError:  # run from a checkout that was never installed
    PACKAGE_VERSION = "0"

SEVERITY_ID = {  # OCSF severity_id
    Severity.INFORMATIONAL: 1,
    Severity.LOW: 2,
    Severity.MEDIUM: 3,
    Severity.HIGH: 4,
    Severity.CRITICAL: 5,
}
SEVERITY_NUMBER = {  # OpenTelemetry log severity, which the CloudEvents extension uses too
    Severity.INFORMATIONAL: 9,
    Severity.LOW: 10,
    Severity.MEDIUM: 13,
    Severity.HIGH: 17,
    Severity.CRITICAL: 21,
}
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_ACTION_DENIED, _ACTION_OBSERVED = 2, 3
_DISPOSITION_BLOCKED, _DISPOSITION_ALERT = 2, 19
_ANALYTIC_RULE = 1
_STATUS_NEW = 1


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
    """Compact UTF-8 JSON in one line; text that is not valid Unicode is replaced."""
    return _utf8(_JSON.encode(value))


def to_event(alert: RedactedAlert, policy: ContentPolicy) -> AlertEvent:
    """Build the event of an alert; ``policy`` is the one the alert was redacted under."""
    event_id = occurrence_id(alert)
    return AlertEvent(
        attributes=_attributes(alert, event_id, policy),
        data=_finding(alert, event_id, policy),
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


def risk_score(alert: Alert) -> int:
    """The rule's own risk score, else 0 to 100 by severity."""
    return alert.severity.rank * 25 if alert.risk_score is None else alert.risk_score


def conversation_id(request: Request) -> str:
    """The session the request belongs to, or the request itself where there is none."""
    return request.session_id or request.request_id


def trace_ids(trace: TraceRef) -> tuple[str, str]:
    """Trace and span id in lower-case hex, 32 and 16 digits."""
    return f"{trace.trace_id:032x}", f"{trace.span_id:016x}"


def _attributes(alert: RedactedAlert, event_id: str, policy: ContentPolicy) -> dict[str, str | int]:
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


def _finding(alert: RedactedAlert, event_id: str, policy: ContentPolicy) -> dict[str, Any]:
    # No confidence_score: fidelity says how much of an activation its text gives back, not how
    # likely the text is to be true, and a consumer would read it as the latter.
    blocked = alert.stop is StopOutcome.BLOCKED
    return {
        "activity_id": 1,
        "category_uid": 2,
        "class_uid": 2004,
        "type_uid": 200401,
        "time": alert.time_unix_ns // 1_000_000,
        "severity_id": SEVERITY_ID[alert.severity],
        "status_id": _STATUS_NEW,
        "is_alert": True,
        "risk_score": risk_score(alert),
        "action_id": _ACTION_DENIED if blocked else _ACTION_OBSERVED,
        "disposition_id": _DISPOSITION_BLOCKED if blocked else _DISPOSITION_ALERT,
        "metadata": {
            "version": OCSF_VERSION,
            "uid": event_id,
            "correlation_uid": alert.request.group_id,
            "product": {"name": "nae-monitor", "version": PACKAGE_VERSION},
            "profiles": ["security_control"],
        },
        "finding_info": {
            "uid": alert.alert_id,
            "title": alert.title,
            "types": list(alert.tags),
            "created_time": alert.time_unix_ns // 1_000_000,
            "analytic": {
                "type_id": _ANALYTIC_RULE,
                "name": alert.rule_name,
                "uid": alert.rule_id,
                "version": alert.rule_version,
            },
        },
        "evidences": [{"data": _evidence(e)} for e in alert.evidence],
        "unmapped": _unmapped(alert, policy),
    }


def _evidence(evidence: Evidence) -> dict[str, Any]:
    finding = evidence.finding
    data: dict[str, Any] = {
        "position": finding.position,
        "phase": evidence.phase.value,
        "token": evidence.token,
        "explanation": evidence.explanation,
        "prompt": evidence.transcript.prompt,
        "output": evidence.transcript.output,
        "fve": finite(evidence.fve),
        "cosine": finite(evidence.cosine),
        **support_values(finding),
        "matches": [
            {
                "selection": span.selection,
                "field": span.field,
                "start": span.start,
                "end": span.end,
                "text": span.text,
                "score": finite(span.score),
            }
            for span in finding.spans
        ],
    }
    data["matches"] = [known(match) for match in data["matches"]]
    return known(data)


def _unmapped(alert: RedactedAlert, policy: ContentPolicy) -> dict[str, Any]:
    request = alert.request
    values: dict[str, Any] = {
        "gen_ai.operation.name": "apply_guardrail",
        "gen_ai.request.model": request.model,
        "gen_ai.response.id": request.request_id,
        "gen_ai.conversation.id": request.session_id,
        "nae.tenant": request.tenant,
        "nae.nla.id": alert.nla_id,
        "nae.fve": finite(alert.evidence[0].fve) if alert.evidence else None,
        **(support_values(alert.evidence[0].finding, "nae.") if alert.evidence else {}),
        "nae.first_position": alert.first_position,
        "nae.last_position": alert.last_position,
        "nae.count": alert.count,
        "nae.held_back": alert.held_back,
        "nae.sequence": alert.sequence,
        "nae.content": policy.mode,
        "nae.routes": list(alert.routes) or None,
        "nae.stop": alert.stop.value if alert.stop else None,
    }
    if request.trace is not None:
        values["trace_id"], values["span_id"] = trace_ids(request.trace)
    return known(values)


def support_values(finding: Finding, prefix: str = "") -> dict[str, str | float | None]:
    """What is known of a finding's support; nothing where its rule does not ask for it.

    ``support``: cosine(AR(whole), h) - cosine(AR(rest), h), where the rest lacks the sentences
    that matched; None where it could not be measured, and ``support_state`` says so.
    ``support_seconds``: wall time of measuring it.
    """
    if not finding.support_asked:
        return {}
    support = finite(finding.support)
    return {
        f"{prefix}support": support,
        f"{prefix}support_state": "unknown" if support is None else "measured",
        f"{prefix}support_seconds": finite(finding.support_s),
    }


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is missing or withheld, so that absence is never an empty string."""
    return {name: value for name, value in values.items() if value not in (None, "")}


def finite(value: float | None) -> float | None:
    """None for an unknown number, NaN or infinity, none of which JSON can carry."""
    return value if value is not None and math.isfinite(value) else None


def _printable(text: str) -> str:
    """As CloudEvents wants attribute strings: no control characters, bounded."""
    kept = text[:MAX_ATTRIBUTE_CHARS]
    if not kept.isprintable():
        kept = "".join(c for c in kept if c.isprintable())
    return _utf8(kept).decode()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")
