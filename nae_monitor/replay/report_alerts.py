"""Alerts as the report lists them: findings of one request and rule, with the best as evidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nae_monitor.records import Finding, FindingState, Severity
from nae_monitor.replay.report_data import Known, RunData, is_finite
from nae_monitor.replay.report_marks import elsewhere, explanation_spans, marked
from nae_monitor.replay.report_stops import outcome_text

MAX_ALERTS = 300  # of each list in the page's HTML; beyond, the conversations still show them
MAX_HITS = 24  # linked tokens of one alert
SEVERITIES = [severity.value for severity in reversed(Severity)]
_UNKNOWN = Known("", "", "unfinished", 0)


@dataclass(frozen=True, slots=True)
class AlertView:
    """Findings of one request and rule, with the best decode as evidence."""

    anchor: str  # of its place on the page; empty where it is not listed
    severity: str
    title: str
    rule: str
    version: str
    request_id: str
    request: Known
    conversation: int | None  # index on the page; None where it was left out
    position: int
    hits: tuple[int, ...]  # positions, ascending
    token: str | None
    phase: str
    fve: float | None
    support: str | None  # of the words that matched, or "unknown"; None: the rule does not ask
    unsupported: str  # P(the theme is not true), or "unknown"
    explanation: tuple[tuple[str, bool], ...]  # text, matched
    elsewhere: tuple[str, ...]  # "field: matched text" outside the explanation
    reused: bool  # the explanation was made for another row
    tags: tuple[str, ...]
    stop: str | None  # what came of the rule's wish to end the generation; None: it had none
    when_unix_ns: int  # of the first hit, or else when the request began; 0 if unknown

    @property
    def is_sign(self) -> bool:
        """Whether it alerts nobody."""
        return self.severity == Severity.INFORMATIONAL


@dataclass(frozen=True, slots=True)
class Listed:
    """The alerts and signs of a run, most severe first; the page prints the first of each."""

    alerts: tuple[AlertView, ...]
    signs: tuple[AlertView, ...]
    anchors: Mapping[tuple[str, str], str]  # request and rule id of what is printed


def listed(run: RunData) -> Listed:
    """Most severe first; within a severity what hit most often."""
    places = {c.request_id: index for index, c in enumerate(run.conversations)}
    folded: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in run.findings:
        if finding.state is FindingState.MATCH:
            folded[(finding.request_id, finding.rule_id)].append(finding)
    stops = {(stop.request_id, stop.rule_id): outcome_text(stop) for stop in run.stops}
    anchors: dict[tuple[str, str], str] = {}
    views: dict[bool, list[AlertView]] = {False: [], True: []}
    for key in sorted(folded, key=lambda key: _order(folded[key])):
        best = _best(folded[key])
        of_kind = views[best.severity is Severity.INFORMATIONAL]
        anchor = f"{'s' if best.severity is Severity.INFORMATIONAL else 'a'}{len(of_kind)}"
        if len(of_kind) < MAX_ALERTS:
            anchors[key] = anchor
        of_kind.append(
            _view(run, folded[key], best, places.get(key[0]), anchors.get(key, ""), stops.get(key))
        )
    return Listed(tuple(views[False]), tuple(views[True]), anchors)


def _best(group: Sequence[Finding]) -> Finding:
    return max(group, key=lambda f: (f.severity.rank, f.fve is not None, f.fve or 0, -f.position))


def _order(group: Sequence[Finding]) -> tuple[int, int, str, str]:
    best = _best(group)
    return (-best.severity.rank, -len(group), best.request_id, best.rule_name)


def _view(
    run: RunData,
    group: Sequence[Finding],
    best: Finding,
    place: int | None,
    anchor: str,
    stop: str | None,
) -> AlertView:
    row: Mapping[str, Any] = {}
    if place is not None:
        rows = run.conversations[place].rows
        row = next((r for r in rows if r["position"] == best.position and r["decoded"]), {})
    text = row.get("explanation") or ""
    known = run.known.get(best.request_id, _UNKNOWN)
    times = [run.hit_times.get((f.request_id, f.position), 0) for f in group]
    return AlertView(
        anchor=anchor,
        severity=best.severity.value,
        title=best.title,
        rule=best.rule_name,
        version=best.rule_version,
        request_id=best.request_id,
        request=known,
        conversation=place,
        position=best.position,
        hits=tuple(sorted({finding.position for finding in group})),
        token=row.get("token"),
        phase=row.get("phase") or "",
        fve=next((fve for fve in (best.fve, row.get("fve")) if is_finite(fve)), None),
        support=support_text(best),
        unsupported=f"{best.unsupported:.2f}" if is_finite(best.unsupported) else "unknown",
        explanation=marked(text, explanation_spans(best)) if text else (),
        elsewhere=elsewhere(best, run.recording.text_withheld),
        reused=bool(row.get("reused")),
        tags=best.tags,
        stop=stop,
        when_unix_ns=min(filter(None, times), default=known.started_unix_ns),
    )


def support_text(finding: Finding) -> str | None:
    """The support of the words that matched, "unknown", or None where the rule does not ask."""
    if not finding.support_asked:
        return None
    return f"{finding.support:.2f}" if is_finite(finding.support) else "unknown"
