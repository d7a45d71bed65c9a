"""Findings as canonical JSON: one line each, the same finding always the same bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from nae_monitor.errors import RecordingError
from nae_monitor.recording.privacy import ContentFilter
from nae_monitor.records import Finding, FindingState, Severity, Span

_SPAN_KEYS = ("selection", "field", "start", "end", "text", "score")


def canonical_line(value: Any) -> str:
    """JSON in ASCII, keys sorted, no spaces, no newline at the end."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def finding_sort_key(finding: Finding) -> tuple[str, int, str, str]:
    """Request, position, rule, then the line itself, so that the order is total."""
    line = canonical_line(finding_to_json(finding))
    return (finding.request_id, finding.position, finding.rule_id, line)


def withheld(finding: Finding, content: ContentFilter) -> Finding:
    """The finding with its matched text as the content setting lets it through."""
    if content.content == "full":
        return finding
    spans = tuple(replace(span, text=content.text(span.text) or "") for span in finding.spans)
    return replace(finding, spans=spans)


def finding_to_json(finding: Finding) -> dict[str, Any]:
    """Plain JSON values; the inverse of :func:`finding_from_json`."""
    # Left out where empty, so that recordings of rules without routes keep their bytes.
    routes = {"routes": list(finding.routes)} if finding.routes else {}
    return {
        "request_id": finding.request_id,
        "position": finding.position,
        "rule_id": finding.rule_id,
        "rule_name": finding.rule_name,
        "rule_version": finding.rule_version,
        "title": finding.title,
        "severity": finding.severity.value,
        "state": finding.state.value,
        "spans": [{key: getattr(span, key) for key in _SPAN_KEYS} for span in finding.spans],
        "undecided": list(finding.undecided),
        "fve": finding.fve,
        "tags": list(finding.tags),
        "risk_score": finding.risk_score,
        **routes,
        **({"support": finding.support} if finding.support_asked else {}),
        **({} if finding.unsupported is None else {"unsupported": finding.unsupported}),
    }


def finding_from_json(value: Any, where: str) -> Finding:
    """Build a finding from untrusted JSON.

    Raises:
        RecordingError: names ``where`` and the first thing that is not as it should be.
    """
    try:
        texts = {
            key: typed(value, key, str)
            for key in ("request_id", "rule_id", "rule_name", "rule_version", "title")
        }
        return Finding(
            **texts,
            position=typed(value, "position", int),
            severity=Severity(value["severity"]),
            state=FindingState(value["state"]),
            spans=tuple(_span(item) for item in typed(value, "spans", list)),
            undecided=tuple(map(str, typed(value, "undecided", list))),
            fve=_number(value["fve"]),
            tags=tuple(map(str, typed(value, "tags", list))),
            risk_score=None if value["risk_score"] is None else typed(value, "risk_score", int),
            routes=tuple(map(str, value.get("routes", ()))),
            support=_number(value.get("support")),
            support_asked="support" in value,
            unsupported=_number(value.get("unsupported")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"{where}: not a finding ({type(error).__name__}: {error})") from error


def _span(value: Any) -> Span:
    return Span(
        selection=typed(value, "selection", str),
        field=typed(value, "field", str),
        start=typed(value, "start", int),
        end=typed(value, "end", int),
        text=typed(value, "text", str),
        score=_number(value["score"]),
    )


def typed(value: Any, key: str, kind: type) -> Any:
    """``value[key]``; KeyError or TypeError where it is missing or not of that kind."""
    item = value[key]
    if not isinstance(item, kind) or isinstance(item, bool):
        raise TypeError(f"{key} must be {kind.__name__}")
    return item


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("expected a number or null")
    return value
