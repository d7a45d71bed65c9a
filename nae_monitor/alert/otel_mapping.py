"""Which OpenTelemetry attribute carries what of an alert; names of our own are stable.

Sources: OpenTelemetry semantic conventions for generative AI (Development): the event
``gen_ai.evaluation.result`` is merged there, the guardrail names are a proposal.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.util.types import AttributeValue

from nae_monitor.alert.ocsf import finite, risk_score, support_values, unsupported_values
from nae_monitor.alert.privacy import ContentMode, RedactedAlert

SPAN_NAME = "apply_guardrail nae_monitor"
EVENT_NAME = "gen_ai.evaluation.result"

GUARDRAIL_NAMES: Mapping[str, str] = {  # ours -> the unmerged proposal's
    "nae.rule.id": "gen_ai.guardrail.id",
    "nae.rule.name": "gen_ai.guardrail.name",
    "nae.rule.version": "gen_ai.guardrail.version",
    "nae.severity": "gen_ai.security.risk.severity",
    "nae.risk_score": "gen_ai.security.risk.score",
}


def span_attributes(
    alert: RedactedAlert, content: ContentMode, *, guardrail_names: bool = False
) -> dict[str, AttributeValue]:
    """Attributes of the alert's span; what is unknown or withheld is left out."""
    values = _common(alert) | _best_evidence(alert) | {"nae.content": content}
    if guardrail_names:
        values |= {GUARDRAIL_NAMES[name]: values[name] for name in GUARDRAIL_NAMES}
    return _known(values)


def evaluation_attributes(alert: RedactedAlert) -> dict[str, AttributeValue]:
    """Attributes of the log event ``gen_ai.evaluation.result``."""
    best = alert.evidence[0] if alert.evidence else None
    return _known(
        {
            "gen_ai.evaluation.name": alert.rule_id,
            "gen_ai.evaluation.score.value": float(risk_score(alert)),
            "gen_ai.evaluation.score.label": alert.severity.value,
            "gen_ai.evaluation.explanation": best.explanation if best else None,
            "gen_ai.response.id": alert.request.request_id,
            "nae.alert.id": alert.alert_id,
            "nae.routes": list(alert.routes),
        }
    )


def metric_attributes(alert: RedactedAlert) -> dict[str, AttributeValue]:
    """Attributes of the ``nae.alerts`` counter: few values only."""
    return {"nae.rule.id": alert.rule_id, "nae.severity": alert.severity.value}


def _common(alert: RedactedAlert) -> dict[str, AttributeValue | None]:
    request = alert.request
    return {
        "gen_ai.operation.name": "apply_guardrail",
        "gen_ai.provider.name": "nae_monitor",
        "gen_ai.request.model": request.model,
        "gen_ai.response.id": request.request_id,
        "gen_ai.conversation.id": request.session_id,
        "nae.alert.id": alert.alert_id,
        "nae.rule.id": alert.rule_id,
        "nae.rule.name": alert.rule_name,
        "nae.rule.version": alert.rule_version,
        "nae.rule.title": alert.title,
        "nae.rule.tags": list(alert.tags),
        "nae.severity": alert.severity.value,
        "nae.risk_score": risk_score(alert),
        "nae.tenant": request.tenant,
        "nae.nla.id": alert.nla_id,
        "nae.first_position": alert.first_position,
        "nae.last_position": alert.last_position,
        "nae.count": alert.count,
        "nae.held_back": alert.held_back,
        "nae.sequence": alert.sequence,
        "nae.routes": list(alert.routes),
        "nae.stop": alert.stop.value if alert.stop else None,
    }


def _best_evidence(alert: RedactedAlert) -> dict[str, AttributeValue | None]:
    if not alert.evidence:
        return {}
    best = alert.evidence[0]
    return {
        "nae.position": best.finding.position,
        "nae.phase": best.phase.value,
        "nae.fve": finite(best.fve),
        "nae.cosine": finite(best.cosine),
        **support_values(best.finding, "nae."),
        **unsupported_values(best.finding, "nae."),
        "nae.token": best.token,
        "nae.explanation": best.explanation,
        "nae.prompt": best.transcript.prompt,
        "nae.output": best.transcript.output,
        "nae.matched_text": [span.text for span in best.finding.spans if span.text],
    }


def _known(values: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    # Lone surrogates in an id would make the exporter refuse a whole batch.
    return {
        name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for name, value in values.items()
        if value is not None and value != "" and value != []
    }
