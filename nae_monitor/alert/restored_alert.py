"""The alert that an event was made of, as far as the event tells it.

What a sink says of an alert that waited on disk is made from this. Content is as redacted as it
was; times are whole microseconds; what no event carries is at its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from nae_monitor.alert.outbox_rows import Row
from nae_monitor.alert.privacy import RedactedAlert
from nae_monitor.records import (
    Alert,
    Evidence,
    Finding,
    FindingState,
    Phase,
    Request,
    Severity,
    Span,
    StopOutcome,
    TraceRef,
    Transcript,
)


def attributes_of(row: Row) -> dict[str, str]:
    """The CloudEvents attributes of a row, without their prefix."""
    return {
        name.removeprefix("ce_"): value.decode()
        for name, value in row.headers
        if name.startswith("ce_")
    }


def restored(row: Row) -> RedactedAlert:
    """The alert of a row.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the row holds no alert event.
    """
    attributes = attributes_of(row)
    return alert_of(attributes, orjson.loads(row.value))


def alert_of(attributes: Mapping[str, str], data: Mapping[str, Any]) -> RedactedAlert:
    """The alert of an event's attributes and its OCSF finding; errors as of :func:`restored`."""
    info, unmapped = data["finding_info"], data["unmapped"]
    analytic = info["analytic"]
    severity = Severity(attributes["severitytext"].lower())
    request = Request(
        request_id=unmapped.get("gen_ai.response.id", ""),
        group_id=data["metadata"]["correlation_uid"],
        model=unmapped.get("gen_ai.request.model", ""),
        session_id=unmapped.get("gen_ai.conversation.id"),
        tenant=unmapped.get("nae.tenant"),
        trace=_trace(unmapped, attributes),
    )
    alert = Alert(
        alert_id=info["uid"],
        request=request,
        rule_id=analytic["uid"],
        rule_name=analytic["name"],
        rule_version=analytic["version"],
        title=info["title"],
        severity=severity,
        risk_score=data["risk_score"],
        tags=tuple(info["types"]),
        first_position=unmapped["nae.first_position"],
        last_position=unmapped["nae.last_position"],
        count=unmapped["nae.count"],
        held_back=unmapped["nae.held_back"],
        evidence=(),
        nla_id=unmapped.get("nae.nla.id", ""),
        sequence=unmapped["nae.sequence"],
        time_unix_ns=_unix_ns(attributes["time"]),
        routes=tuple(unmapped.get("nae.routes", ())),
        stop=StopOutcome(unmapped["nae.stop"]) if "nae.stop" in unmapped else None,
    )
    evidence = tuple(_evidence(one["data"], alert) for one in data["evidences"])
    return RedactedAlert(replace(alert, evidence=evidence))


def _trace(unmapped: Mapping[str, Any], attributes: Mapping[str, str]) -> TraceRef | None:
    if "trace_id" not in unmapped:
        return None
    flags = attributes["traceparent"].rpartition("-")[2]
    return TraceRef(int(unmapped["trace_id"], 16), int(unmapped["span_id"], 16), int(flags, 16))


def _unix_ns(time: str) -> int:
    since = datetime.fromisoformat(time) - datetime.fromtimestamp(0, UTC)
    return since // timedelta(microseconds=1) * 1000


def _evidence(data: Mapping[str, Any], alert: Alert) -> Evidence:
    finding = Finding(
        request_id=alert.request.request_id,
        position=data["position"],
        rule_id=alert.rule_id,
        rule_name=alert.rule_name,
        rule_version=alert.rule_version,
        title=alert.title,
        severity=alert.severity,
        state=FindingState.MATCH,
        spans=tuple(_span(match) for match in data["matches"]),
        fve=data.get("fve"),
        tags=alert.tags,
        risk_score=alert.risk_score,
        routes=alert.routes,
        support=data.get("support"),
        support_asked="support_state" in data,
        support_s=data.get("support_seconds"),
        unsupported=data.get("unsupported"),
        unsupported_decodes=data.get("unsupported_decodes", 0),
        unsupported_s=data.get("unsupported_seconds", 0.0),
    )
    return Evidence(
        finding,
        data.get("token", ""),
        Phase(data["phase"]),
        data.get("explanation", ""),
        Transcript(data.get("prompt"), data.get("output")),
        data.get("fve"),
        data.get("cosine"),
        data.get("reused", False),
    )


def _span(match: Mapping[str, Any]) -> Span:
    return Span(
        match.get("selection", ""),
        match.get("field", ""),
        match["start"],
        match["end"],
        match.get("text", ""),
        match.get("score"),
    )
