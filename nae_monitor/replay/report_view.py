"""The run as values the template prints: tiles, chart geometry, alerts, and the page's JSON."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from nae_monitor.records import Finding, FindingState, Severity
from nae_monitor.replay.report_data import Conversation, RunData, special_positions
from nae_monitor.replay.report_marks import elsewhere, explanation_spans, marked, merged_ranges
from nae_monitor.replay.report_stops import outcome_text

MAX_ALERTS = 300  # printed without JavaScript; beyond, the conversations still show them
LOWEST_BIN, BIN_COUNT = -0.2, 12  # tenths from -0.2 to 1; lower values join the first
SEVERITIES = [severity.value for severity in reversed(Severity)]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of the histogram, in the units of its view box (width 12, height 1)."""

    x: int
    height: float
    count: int
    low: float
    high: float
    bucket: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """FVE of every decode."""

    bars: tuple[Bar, ...]
    median: float | None
    median_x: float
    negative_share: float


@dataclass(frozen=True, slots=True)
class AlertView:
    """Findings of one request and rule, with the best decode as evidence."""

    severity: str
    title: str
    rule: str
    version: str
    request_id: str
    conversation: int | None  # index on the page; None where it was left out
    position: int
    count: int
    token: str | None
    phase: str
    fve: float | None
    support: str | None  # of the words that matched, or "unknown"; None: the rule does not ask
    explanation: tuple[tuple[str, bool], ...]  # text, matched
    elsewhere: tuple[str, ...]  # "field: matched text" outside the explanation
    tags: tuple[str, ...]
    stop: str | None  # what came of the rule's wish to end the generation; None: it had none


def fidelity_bucket(fve: float | None) -> str:
    """The step of the colour scale: unknown, below (zero or less), 1 … 5."""
    if fve is None or math.isnan(fve):
        return "unknown"
    return "below" if fve <= 0 else str(min(5, int(fve * 5) + 1))


def histogram(values: Sequence[float]) -> Histogram:
    """Tenths of FVE; the tallest bar is 1 high."""
    counts = [0] * BIN_COUNT
    for value in values:
        place = math.floor((value - LOWEST_BIN) * 10 + 1e-9)
        counts[min(BIN_COUNT - 1, max(0, place))] += 1
    tallest = max(counts, default=0) or 1
    bars = tuple(
        Bar(i, n / tallest, n, low, low + 0.1, fidelity_bucket(low + 0.05))
        for i, n in enumerate(counts)
        for low in [round(LOWEST_BIN + i / 10, 1)]
    )
    middle = median(values) if values else None
    x = 0.0 if middle is None else min(BIN_COUNT, max(0.0, (middle - LOWEST_BIN) * 10))
    negative = sum(value <= 0 for value in values) / (len(values) or 1)
    return Histogram(bars, middle, x, negative)


def alerts(run: RunData) -> list[AlertView]:
    """Most severe first; within a severity the rule that hit most often."""
    places = {c.request_id: index for index, c in enumerate(run.conversations)}
    folded: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in run.findings:
        if finding.state is FindingState.MATCH:
            folded[(finding.request_id, finding.rule_id)].append(finding)
    withheld = run.recording.text_withheld
    stops = {(stop.request_id, stop.rule_id): outcome_text(stop) for stop in run.stops}
    views = [
        replace(
            _alert(group, places.get(request_id), run.conversations, withheld),
            stop=stops.get((request_id, rule_id)),
        )
        for (request_id, rule_id), group in folded.items()
    ]
    order = {severity: rank for rank, severity in enumerate(SEVERITIES)}
    return sorted(views, key=lambda v: (order[v.severity], -v.count, v.request_id, v.rule))


def _alert(
    group: Sequence[Finding],
    place: int | None,
    conversations: Sequence[Conversation],
    withheld: bool,
) -> AlertView:
    best = max(group, key=lambda f: (f.severity.rank, f.fve is not None, f.fve or 0, -f.position))
    row: Mapping[str, Any] = {}
    if place is not None:
        rows = conversations[place].rows
        row = next((r for r in rows if r["position"] == best.position and r["decoded"]), {})
    text = row.get("explanation") or ""
    return AlertView(
        severity=best.severity.value,
        title=best.title,
        rule=best.rule_name,
        version=best.rule_version,
        request_id=best.request_id,
        conversation=place,
        position=best.position,
        count=len(group),
        token=row.get("token"),
        phase=row.get("phase") or "",
        fve=best.fve if best.fve is not None else row.get("fve"),
        support=_support(best),
        explanation=marked(text, explanation_spans(best)) if text else (),
        elsewhere=elsewhere(best, withheld),
        tags=best.tags,
        stop=None,
    )


def _support(finding: Finding) -> str | None:
    if not finding.support_asked:
        return None
    support = _finite(finding.support)
    return "unknown" if support is None else f"{support:.2f}"


def page_json(run: RunData) -> dict[str, Any]:
    """Everything the page's script needs, as plain JSON values."""
    ids = run.recording.manifest.get("special_token_ids")
    special = frozenset(i for i in ids if isinstance(i, int)) if isinstance(ids, list) else None
    withheld = run.recording.text_withheld
    return {
        "withheld": withheld,
        "conversations": [
            _conversation(c, special or frozenset(), withheld) for c in run.conversations
        ],
    }


def _conversation(
    conversation: Conversation, special: frozenset[int], withheld: bool
) -> dict[str, Any]:
    record = conversation.record
    by_position: dict[int, list[Finding]] = defaultdict(list)
    for finding in conversation.findings:
        by_position[finding.position].append(finding)
    worst = conversation.worst
    return {
        "id": conversation.request_id,
        "session": record.request.session_id if record else None,
        "tenant": record.request.tenant if record else None,
        "state": conversation.state,
        "reasons": list(record.reasons) if record else [],
        "severity": worst.value if worst else "",
        "promptTokens": record.prompt_tokens if record else None,
        "outputTokens": record.output_tokens if record else None,
        "prompt": record.prompt_token_texts if record else None,
        "output": record.output_token_texts if record else None,
        "special": special_positions(conversation, special),
        "rows": [
            _row(row, by_position.get(row["position"], []), withheld) for row in conversation.rows
        ],
    }


def _row(row: Mapping[str, Any], findings: Sequence[Finding], withheld: bool) -> dict[str, Any]:
    text = row["explanation"] or ""
    spans = [span for finding in findings for span in explanation_spans(finding)]
    worst = max((f for f in findings), key=_weight, default=None)
    return {
        "p": row["position"],
        "t": row["token"],
        "phase": row["phase"],
        "reason": row["reason"],
        "decoded": row["decoded"],
        "text": text,
        "marks": _utf16(text, merged_ranges(text, spans)),
        "closed": row["closed"],
        "fve": _finite(row["fve"]),
        "cosine": _finite(row["cosine"]),
        "rank": row["rank"],
        "bank": row["bank_size"],
        "support": _finite(row["support"]),
        "bucket": fidelity_bucket(row["fve"]) if row["decoded"] else "",
        "dropped": row["dropped_reason"],
        "mark": _mark(worst),
        "findings": [
            _finding(finding, withheld) for finding in sorted(findings, key=_weight, reverse=True)
        ],
    }


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


def _finding(finding: Finding, withheld: bool) -> dict[str, Any]:
    return {
        "title": finding.title,
        "rule": finding.rule_name,
        "version": finding.rule_version,
        "severity": finding.severity.value,
        "state": finding.state.value,
        "elsewhere": elsewhere(finding, withheld),
        "undecided": list(finding.undecided),
        "support": _support(finding),
    }


def _finite(value: float | None) -> float | None:
    """JSON as browsers read it has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def visible_token(text: str) -> str:
    """A token without the space glued to it; one of only white space by its signs."""
    return text.strip() or text.replace("\n", "⏎").replace(" ", "␣").replace("\t", "⇥")
