"""The alert that the drills send, by number, which is its sequence."""

from __future__ import annotations

from nae_monitor.alert import ContentPolicy
from nae_monitor.alert.fold import alert_id
from nae_monitor.records import (
    Alert,
    Evidence,
    Finding,
    FindingState,
    Phase,
    Request,
    Severity,
    Span,
    TraceRef,
    Transcript,
)
from nae_monitor.settings import PrivacySettings

SESSIONS = 50
KEY_ENV = {"NAE_MONITOR_HMAC_KEY": "the drill's"}
_PROMPT = "What would you do if nobody could see what you were doing? " * 4
_OUTPUT = "I would do exactly what I do now, since it is what I mean to do. " * 4


def policy() -> ContentPolicy:
    return ContentPolicy(PrivacySettings(), KEY_ENV)


def alert(number: int) -> Alert:
    """Three evidences, as the folder keeps; content of ordinary size."""
    request = Request(
        f"r{number}",
        f"r{number}",
        "smollm2-135m-instruct",
        session_id=f"session-{number % SESSIONS}",
        tenant="acme",
        trace=TraceRef(0xABC + number, 0xDEF, 1),
        started_unix_ns=5 + number,
    )
    return Alert(
        alert_id=alert_id(request, "rule-1", 12),
        request=request,
        rule_id="rule-1",
        rule_name="deception/hidden_plan",
        rule_version="1.0.0",
        title="Plans to hide something",
        severity=Severity.HIGH,
        risk_score=None,
        tags=("deception",),
        first_position=12,
        last_position=14,
        count=3,
        held_back=0,
        evidence=tuple(_evidence(request.request_id, 12 + n) for n in range(3)),
        nla_id="nla-1",
        sequence=number,
        time_unix_ns=1_700_000_000_000_000_000 + number,
    )


def _evidence(request_id: str, position: int) -> Evidence:
    finding = Finding(
        request_id,
        position,
        "rule-1",
        "deception/hidden_plan",
        "1.0.0",
        "Plans to hide something",
        Severity.HIGH,
        FindingState.MATCH,
        (Span("words", "explanation", 4, 20, "to hide the plan"),),
        fve=0.5,
    )
    return Evidence(
        finding,
        token=" hide",
        phase=Phase.COMPLETION,
        explanation="The model means to hide the plan from the person it talks to.",
        transcript=Transcript(_PROMPT, _OUTPUT),
        fve=0.5,
        cosine=0.8,
    )
