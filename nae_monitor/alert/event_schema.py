"""The JSON Schema (draft 2020-12) of an alert event's value, and of the event as a whole.

Further members may be added within the same event type; what is required here stays. A change
that breaks a consumer gets another event type (``…alert.v2``).
"""

from __future__ import annotations

from typing import Any

from nae_monitor.alert.event import (
    EVENT_TYPE,
    MAX_ATTRIBUTE_CHARS,
    SEVERITY_NUMBER,
)
from nae_monitor.alert.ocsf import OCSF_VERSION, SEVERITY_ID
from nae_monitor.records import Phase, Severity, StopOutcome

DIALECT = "https://json-schema.org/draft/2020-12/schema"
VALUE_SCHEMA_ID = "urn:nae-monitor:alert:v1:value"
EVENT_SCHEMA_ID = "urn:nae-monitor:alert:v1:event"

_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_NUMBER: dict[str, Any] = {"type": "number"}
_TIME_MS: dict[str, Any] = {**_COUNT, "description": "Unix time in milliseconds."}
_UUID: dict[str, Any] = {"type": "string", "format": "uuid"}
_CONTENT: dict[str, Any] = {
    "type": "string",
    "description": "Absent, hmac-sha256:HEX, or the text, as unmapped.nae.content says.",
}
_SUPPORT_STATE: dict[str, Any] = {"enum": ["measured", "unknown"]}


def value_schema() -> dict[str, Any]:
    """Of the Kafka value, and of ``data`` in a line of the jsonl sink: the OCSF finding."""
    fields: dict[str, Any] = {
        "activity_id": {"const": 1},
        "category_uid": {"const": 2},
        "class_uid": {"const": 2004},
        "type_uid": {"const": 200401},
        "time": _TIME_MS,
        "severity_id": {"enum": list(SEVERITY_ID.values())},
        "status_id": {"const": 1},
        "is_alert": {"const": True},
        "risk_score": _COUNT,
        "action_id": {"enum": [2, 3], "description": "2 denied (stopped), 3 observed."},
        "disposition_id": {"enum": [2, 19], "description": "2 blocked, 19 alert."},
        "metadata": _metadata(),
        "finding_info": _finding_info(),
        "evidences": {"type": "array", "items": _record({"data": _evidence()}, ["data"])},
        "unmapped": _unmapped(),
    }
    head = {
        "$schema": DIALECT,
        "$id": VALUE_SCHEMA_ID,
        "title": "nae_monitor alert",
        "description": f"An OCSF {OCSF_VERSION} Detection Finding, as {EVENT_TYPE} carries it.",
    }
    return {**head, **_record(fields, list(fields))}


def attributes_schema() -> dict[str, Any]:
    """Of the CloudEvents attributes, without prefix, as the jsonl sink writes them."""
    fields: dict[str, Any] = {
        "specversion": {"const": "1.0"},
        "id": _UUID,
        "source": {"type": "string", "pattern": "^/nae-monitor/"},
        "type": {"const": EVENT_TYPE},
        "time": {"type": "string", "format": "date-time"},
        "subject": {"type": "string", "minLength": 1, "maxLength": MAX_ATTRIBUTE_CHARS},
        "dataschema": {"type": "string", "format": "uri"},
        "partitionkey": {"type": "string", "minLength": 1},
        "sequence": {"type": "string", "pattern": r"^[0-9]{20}\.[0-9]{12,}$"},
        "severitytext": {"enum": [severity.upper() for severity in Severity]},
        "severitynumber": {"enum": list(SEVERITY_NUMBER.values())},
        "routes": {"type": "string", "description": "Names, separated by commas."},
        "traceparent": {"type": "string", "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"},
    }
    return _record(fields, [name for name in fields if name not in ("routes", "traceparent")])


def event_schema() -> dict[str, Any]:
    """Of a whole event in structured mode: a line of the jsonl sink, a body of the webhook."""
    whole = attributes_schema()
    value = {k: v for k, v in value_schema().items() if k not in ("$schema", "$id")}
    whole["properties"] |= {"datacontenttype": {"const": "application/json"}, "data": value}
    whole["required"] += ["datacontenttype", "data"]
    return {"$schema": DIALECT, "$id": EVENT_SCHEMA_ID, "title": "nae_monitor alert event", **whole}


def _record(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _metadata() -> dict[str, Any]:
    product = _record({"name": {"const": "nae-monitor"}, "version": _TEXT}, ["name", "version"])
    fields = {
        "version": {"const": OCSF_VERSION},
        "uid": {**_UUID, "description": "Equals the id of the event."},
        "correlation_uid": {**_TEXT, "description": "The group the request belongs to."},
        "product": product,
        "profiles": {"const": ["security_control"]},
    }
    return _record(fields, list(fields))


def _finding_info() -> dict[str, Any]:
    analytic = {"type_id": {"const": 1}, "name": _TEXT, "uid": _TEXT, "version": _TEXT}
    fields = {
        "uid": {**_UUID, "description": "The alert: the same on every replay of the request."},
        "title": _TEXT,
        "types": {"type": "array", "items": _TEXT, "description": "The tags of the rule."},
        "created_time": _TIME_MS,
        "analytic": _record(analytic, list(analytic)),
    }
    return _record(fields, list(fields))


def _evidence() -> dict[str, Any]:
    match = {
        "selection": _TEXT,
        "field": _TEXT,
        "start": {**_COUNT, "description": "Characters of the whole, unredacted text."},
        "end": _COUNT,
        "text": _CONTENT,
        "score": {**_NUMBER, "description": "Fuzzy 0 to 100, or a cosine; absent: exact."},
    }
    fields = {
        "position": {**_COUNT, "description": "Of the token in its request, from 0."},
        "phase": {"enum": [phase.value for phase in Phase]},
        **dict.fromkeys(("token", "explanation", "prompt", "output"), _CONTENT),
        "fve": {"type": "number", "description": "Fraction of variance explained; absent: unknown"},
        "cosine": _NUMBER,
        "reused": {"const": True, "description": "The explanation was made for another token."},
        "support": _NUMBER,
        "support_state": _SUPPORT_STATE,
        "support_seconds": _NUMBER,
        "unsupported": {
            **_NUMBER,
            "description": "Estimated probability that the theme is not true; absent: unknown.",
        },
        "unsupported_decodes": {**_COUNT, "description": "Further texts that it cost."},
        "unsupported_seconds": _NUMBER,
        "matches": {"type": "array", "items": _record(match, ["start", "end"])},
    }
    return _record(fields, ["position", "phase", "matches"])


def _unmapped() -> dict[str, Any]:
    fields = {
        "gen_ai.operation.name": {"const": "apply_guardrail"},
        "gen_ai.request.model": _TEXT,
        "gen_ai.response.id": _TEXT,
        "gen_ai.conversation.id": _TEXT,
        "nae.tenant": _TEXT,
        "nae.nla.id": _TEXT,
        "nae.fve": _NUMBER,
        "nae.support": _NUMBER,
        "nae.support_state": _SUPPORT_STATE,
        "nae.support_seconds": _NUMBER,
        "nae.unsupported": _NUMBER,
        "nae.unsupported_decodes": _COUNT,
        "nae.unsupported_seconds": _NUMBER,
        "nae.first_position": _COUNT,
        "nae.last_position": _COUNT,
        "nae.count": {**_COUNT, "description": "Findings folded into this alert."},
        "nae.held_back": _COUNT,
        "nae.sequence": _COUNT,
        "nae.content": {"enum": ["hash", "full", "none"]},
        "nae.routes": {"type": "array", "items": _TEXT},
        "nae.stop": {"enum": [outcome.value for outcome in StopOutcome]},
        "trace_id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "span_id": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
    }
    always = ("gen_ai.operation.name", "nae.first_position", "nae.last_position", "nae.count")
    return _record(fields, [*always, "nae.held_back", "nae.sequence", "nae.content"])
