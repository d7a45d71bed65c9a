"""The page's JSON: what its script draws conversations from. What is empty is left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nae_monitor.records import Finding, FindingState
from nae_monitor.replay.report_alerts import Listed, support_text
from nae_monitor.replay.report_data import (
    Conversation,
    RunData,
    is_finite,
    shown_scores,
    special_positions,
)
from nae_monitor.replay.report_fidelity import fidelity_bucket, score_steps
from nae_monitor.replay.report_marks import evidence, explanation_spans, merged_ranges
from nae_monitor.replay.report_said import Said, said_in
from nae_monitor.replay.report_spend import why

_MS = 1_000_000  # nanoseconds


def page_json(run: RunData, alerts: Listed) -> dict[str, Any]:
    """Everything the page's script needs, as plain JSON values."""
    ids = run.recording.manifest.get("special_token_ids")
    special = frozenset(i for i in ids if isinstance(i, int)) if isinstance(ids, list) else None
    page = _Page(run.recording.text_withheld, special or frozenset(), alerts)
    conversations = [page.conversation(c) for c in run.conversations]
    return {
        "withheld": page.withheld,
        "directions": list(page.directions),
        "steps": score_steps(run.strongest),
        "conversations": conversations,
    }


@dataclass(slots=True)
class _Page:
    """Turns records into plain values; directions are numbered as they come."""

    withheld: bool
    special: frozenset[int]
    alerts: Listed
    directions: dict[str, int] = field(default_factory=dict)

    def conversation(self, conversation: Conversation) -> dict[str, Any]:
        record = conversation.record
        by_position: dict[int, list[Finding]] = defaultdict(list)
        for finding in conversation.findings:
            by_position[finding.position].append(finding)
        worst = conversation.worst
        first_ms, last_ms = _times_ms(conversation)
        said = said_in(record)
        return {
            "id": conversation.request_id,
            "session": record.request.session_id if record else None,
            "tenant": record.request.tenant if record else None,
            "model": record.request.model if record else None,
            "from": first_ms,
            "to": last_ms,
            "state": conversation.state,
            "reasons": list(record.reasons) if record else [],
            "severity": worst.value if worst else "",
            "promptTokens": record.prompt_tokens if record else None,
            "outputTokens": record.output_tokens if record else None,
            "prompt": record.prompt_token_texts if record else None,
            "output": record.output_token_texts if record else None,
            "special": special_positions(conversation, self.special),
            "rows": [
                self.row(row, by_position.get(row["position"], ()), said)
                for row in conversation.rows
            ],
        }

    def row(
        self, row: Mapping[str, Any], findings: Sequence[Finding], said: Said
    ) -> dict[str, Any]:
        text = row["explanation"] or ""
        spans = [span for finding in findings for span in explanation_spans(finding)]
        worst = max((f for f in findings), key=_weight, default=None)
        values = {
            "p": row["position"],
            "t": row["token"],
            "phase": row["phase"],
            "reason": why(row["reason"] or "unknown"),
            "decoded": row["decoded"] or None,
            "text": text,
            "marks": _utf16(text, merged_ranges(text, spans)),
            "cut": (row["decoded"] and not row["closed"]) or None,
            "reused": row["reused"] or None,
            "fve": _rounded(row["fve"]),
            "cosine": _rounded(row["cosine"]),
            "rank": row["rank"],
            "bank": row["bank_size"],
            "support": _rounded(row["support"]),
            "bucket": fidelity_bucket(row["fve"]) if row["decoded"] else "",
            "scores": [
                (self.directions.setdefault(name, len(self.directions)), _rounded(score))
                for name, score in shown_scores(row)
            ],
            "dropped": row["dropped_reason"],
            "mark": _mark(worst),
            "findings": [
                self.finding(f, said) for f in sorted(findings, key=_weight, reverse=True)
            ],
        }
        return {name: value for name, value in values.items() if value not in (None, "", [])}

    def finding(self, finding: Finding, said: Said) -> dict[str, Any]:
        return {
            "title": finding.title,
            "rule": finding.rule_name,
            "version": finding.rule_version,
            "severity": finding.severity.value,
            "state": finding.state.value,
            "evidence": evidence(finding, said, self.withheld),
            "undecided": list(finding.undecided),
            "support": support_text(finding),
            "alert": self.alerts.anchors.get((finding.request_id, finding.rule_id), "")
            if finding.state is FindingState.MATCH
            else "",
        }


def _times_ms(conversation: Conversation) -> tuple[int | None, int | None]:
    """Unix milliseconds of a conversation's begin and end as far as they are known."""
    record = conversation.record
    told = [row["captured_unix_ns"] for row in conversation.rows]
    if record:
        told += [record.request.started_unix_ns, record.finished_unix_ns]
    known = [time for time in told if time and 0 < time < 2**62]
    return (min(known) // _MS, max(known) // _MS) if known else (None, None)


def _utf16(text: str, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Character offsets as JavaScript counts them."""

    def units(end: int) -> int:
        return len(text[:end].encode("utf-16-le")) // 2

    return [(units(start), units(end)) for start, end in ranges]


def _weight(finding: Finding) -> tuple[bool, int]:
    return (finding.state is FindingState.MATCH, finding.severity.rank)


def _mark(worst: Finding | None) -> str:
    if worst is None:
        return ""
    return worst.severity.value if worst.state is FindingState.MATCH else "undecided"


def _rounded(value: float | None) -> float | None:
    """Four figures after the point, which nobody sees more of; JSON in browsers has no NaN."""
    return round(value, 4) if is_finite(value) else None
