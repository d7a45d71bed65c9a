"""An alert as an OCSF Detection Finding: class 2004 with the ``security_control`` profile, 1.8.0.

Built field by field, since a sink builds thousands a second: what is unknown or withheld is never
put in, so that absence is never an empty string.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nae_monitor.records import Alert, Evidence, Finding, Severity, Span, StopOutcome, TraceRef

OCSF_VERSION = "1.8.0"
Show = Callable[[str], str]  # what may be shown of a text; "": nothing

try:
    PACKAGE_VERSION = version("nae-monitor")
except PackageNotFoundError:  # run from a checkout that was never installed
    PACKAGE_VERSION = "0"

SEVERITY_ID = {
    Severity.INFORMATIONAL: 1,
    Severity.LOW: 2,
    Severity.MEDIUM: 3,
    Severity.HIGH: 4,
    Severity.CRITICAL: 5,
}
_ACTION_DENIED, _ACTION_OBSERVED = 2, 3
_DISPOSITION_BLOCKED, _DISPOSITION_ALERT = 2, 19
_ANALYTIC_RULE = 1
_STATUS_NEW = 1
_PRODUCT = {"name": "nae-monitor", "version": PACKAGE_VERSION}


def finding_of(alert: Alert, event_id: str, show: Show, content: str) -> dict[str, Any]:
    """The finding, in plain JSON values.

    Args:
        alert: what is told.
        event_id: the id of the event around it.
        show: what every text of prompt, output, explanation, token and match goes through.
        content: the name of the privacy setting that ``show`` follows.
    """
    # No confidence_score: fidelity says how much of an activation its text gives back, not how
    # likely the text is to be true, and a consumer would read it as the latter.
    blocked = alert.stop is StopOutcome.BLOCKED
    time_ms = alert.time_unix_ns // 1_000_000
    return {
        "activity_id": 1,
        "category_uid": 2,
        "class_uid": 2004,
        "type_uid": 200401,
        "time": time_ms,
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
            "product": _PRODUCT,
            "profiles": ["security_control"],
        },
        "finding_info": {
            "uid": alert.alert_id,
            "title": alert.title,
            "types": list(alert.tags),
            "created_time": time_ms,
            "analytic": {
                "type_id": _ANALYTIC_RULE,
                "name": alert.rule_name,
                "uid": alert.rule_id,
                "version": alert.rule_version,
            },
        },
        "evidences": [{"data": _evidence(e, show)} for e in alert.evidence],
        "unmapped": _unmapped(alert, content),
    }


def risk_score(alert: Alert) -> int:
    """The rule's own risk score, else 0 to 100 by severity."""
    return alert.severity.rank * 25 if alert.risk_score is None else alert.risk_score


def trace_ids(trace: TraceRef) -> tuple[str, str]:
    """Trace and span id in lower-case hex, 32 and 16 digits."""
    return f"{trace.trace_id:032x}", f"{trace.span_id:016x}"


def _evidence(evidence: Evidence, show: Show) -> dict[str, Any]:
    finding, said = evidence.finding, evidence.transcript
    data: dict[str, Any] = {"position": finding.position, "phase": evidence.phase.value}
    for name, text in (
        ("token", evidence.token),
        ("explanation", evidence.explanation),
        ("prompt", said.prompt),
        ("output", said.output),
    ):
        if text and (shown := show(text)):
            data[name] = shown
    for name, number in (("fve", evidence.fve), ("cosine", evidence.cosine)):
        if finite(number) is not None:
            data[name] = number
    if evidence.reused:
        data["reused"] = True
    if finding.support_asked:
        data |= known(support_values(finding))
    if finding.unsupported is not None:
        data |= known(unsupported_values(finding))
    data["matches"] = [_match(span, show) for span in finding.spans]
    return data


def _match(span: Span, show: Show) -> dict[str, Any]:
    return known(
        {
            "selection": span.selection,
            "field": span.field,
            "start": span.start,
            "end": span.end,
            "text": show(span.text) if span.text else "",
            "score": finite(span.score),
        }
    )


def _unmapped(alert: Alert, content: str) -> dict[str, Any]:
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
        **(unsupported_values(alert.evidence[0].finding, "nae.") if alert.evidence else {}),
        "nae.first_position": alert.first_position,
        "nae.last_position": alert.last_position,
        "nae.count": alert.count,
        "nae.held_back": alert.held_back,
        "nae.sequence": alert.sequence,
        "nae.content": content,
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


def unsupported_values(finding: Finding, prefix: str = "") -> dict[str, float | None]:
    """P(unsupported) of a finding's decode and what it cost; nothing where it is unknown."""
    figure = finite(finding.unsupported)
    if figure is None:
        return {}
    return {
        f"{prefix}unsupported": figure,
        f"{prefix}unsupported_decodes": finding.unsupported_decodes or None,
        f"{prefix}unsupported_seconds": finite(finding.unsupported_s) or None,
    }


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is missing or withheld, so that absence is never an empty string."""
    return {name: value for name, value in values.items() if value is not None and value != ""}


def finite(value: float | None) -> float | None:
    """None for an unknown number, NaN or infinity, none of which JSON can carry."""
    return value if value is not None and math.isfinite(value) else None
