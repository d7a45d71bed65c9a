"""Why an aggregation rule matched a corpus, or why it did not: the window it came nearest in."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nae_monitor.detect.aggregation import AggregationRule, Answer, counts, judge_window
from nae_monitor.detect.aggregation import Sample as Row
from nae_monitor.detect.calibration import Calibration
from nae_monitor.detect.correlation import group_of
from nae_monitor.detect.engine import Judge
from nae_monitor.detect.packs import RuleSet
from nae_monitor.detect.semantic import Encoder
from nae_monitor.detect.tools.alerting import Alerted, Alerting
from nae_monitor.detect.tools.corpus import Sample
from nae_monitor.detect.tools.windows import CorpusWindows, names_by_state, row_of
from nae_monitor.records import Finding, FindingState, Request

_RANK = {FindingState.NO_MATCH: 0, FindingState.UNDECIDED: 1, FindingState.MATCH: 2}


@dataclass(frozen=True, slots=True)
class WindowHit:
    """A hit inside a window. ``barred``: of a rule that must not occur."""

    rule_name: str
    request_id: str
    position: int
    state: FindingState
    barred: bool


@dataclass(frozen=True, slots=True)
class WindowReport:
    """One window, which ends at its anchor."""

    group: tuple[str, ...]
    anchor: Row
    samples: int
    hits: tuple[WindowHit, ...]
    low: int  # what it counts to, without undecided hits
    high: int  # and with them
    answer: Answer


@dataclass(frozen=True, slots=True)
class AggregationExplanation:
    """An aggregation rule's whole answer over a corpus, or over one request of it."""

    rule: AggregationRule
    outcome: FindingState
    held_by: str
    why: str  # where undecided, or where nothing came near
    samples: int
    hits: Counter[str]  # of each rule it counts, over all samples
    windows: Counter[FindingState]
    nearest: WindowReport | None  # the first of the best answers, else the highest count
    alerts: tuple[Alerted, ...]


def explain_aggregation(
    rules: RuleSet,
    rule: AggregationRule,
    samples: Iterable[Sample],
    encoder: Encoder | None = None,
    wanted: str = "",
    calibration: Calibration | None = None,
) -> AggregationExplanation:
    """Judge the samples by the rules it counts, and lay its windows open.

    Args:
        rules: where the rules it counts are.
        rule: the aggregation rule.
        samples: the corpus.
        encoder: for semantic selections; without one they are unknown.
        wanted: ``REQUEST`` or ``REQUEST:POSITION``, to look at its windows only; "": at all.
        calibration: for percentiles; without one they are unknown.

    Raises:
        ConfigurationError: the encoder fails on the rules' own exemplars.
    """
    names = {*rule.rules, *rule.absent}
    own = RuleSet.of([r for r in rules.rules if r.name in names], [rule])
    judge = Judge(own, encoder, calibration=calibration)
    windows, alerting = CorpusWindows(own), Alerting()
    rows: list[Row] = []
    requests: dict[str, Request] = {}
    found: list[Finding] = []
    for sample in samples:
        given = sample.activation, sample.decoding, sample.transcript
        answers = names_by_state(judge.judge(*given))
        requests[sample.activation.request.request_id] = sample.activation.request
        rows.append(row_of(sample.activation, *answers))
        alerting.saw(sample.activation)
        found += windows.take(sample.activation, *answers)
    found += windows.finish()
    for finding in found:
        alerting.add(requests[finding.request_id], [finding])
    reports = [r for r in window_reports(rule, rows) if _is_wanted(r.anchor, wanted)]
    heard = [f for f in found if wanted in ("", f.request_id, f"{f.request_id}:{f.position}")]
    return AggregationExplanation(
        rule=rule,
        outcome=max((f.state for f in heard), key=_RANK.__getitem__, default=FindingState.NO_MATCH),
        held_by="" if rule.enabled else "the rule is disabled",
        why=next((why for f in heard for why in f.undecided), ""),
        samples=len(rows),
        hits=Counter(name for row in rows for name in row.hits if name in names),
        windows=Counter(report.answer.state for report in reports),
        nearest=max(reports, key=_nearness, default=None),
        alerts=tuple(alerting.fates(own.suppressions())),
    )


def window_reports(rule: AggregationRule, rows: Sequence[Row]) -> Iterator[WindowReport]:
    """Every window of the rule over all rows at once, by group and in order."""
    groups: dict[tuple[str, ...], dict[tuple[str, int, int], Row]] = {}
    for row in rows:
        if rule.window.unit != "time" or row.captured_unix_ns > 0:
            group = group_of(rule, row.request_id, row.fields)
            groups.setdefault(group, {}).setdefault(row.identity, row)
    for group, distinct in groups.items():
        ordered = sorted(distinct.values(), key=lambda row: (rule.place(row), *row.identity))
        places = [rule.place(row) for row in ordered]
        for index, anchor in enumerate(ordered):
            if rule.is_anchor(anchor):
                window = ordered[_start(rule, places, index) : index + 1]
                yield _report(rule, group, window)


def _start(rule: AggregationRule, places: Sequence[int], index: int) -> int:
    if rule.window.unit == "samples":
        return max(0, index + 1 - rule.window.size)
    return bisect_left(places, places[index] - rule.window.size + 1, 0, index)


def _report(rule: AggregationRule, group: tuple[str, ...], window: Sequence[Row]) -> WindowReport:
    names = {*rule.rules, *rule.absent}
    hits = tuple(
        WindowHit(name, row.request_id, row.position, state, name in rule.absent)
        for row in window
        for state, those in (
            (FindingState.MATCH, row.hits),
            (FindingState.UNDECIDED, row.unsure - row.hits),
        )
        for name in sorted(those & names)
    )
    low, high = counts(rule, window)
    return WindowReport(
        group[1:], window[-1], len(window), hits, low, high, judge_window(rule, window)
    )


def _nearness(report: WindowReport) -> tuple[int, int, int]:
    return _RANK[report.answer.state], report.low, report.high


def _is_wanted(anchor: Row, wanted: str) -> bool:
    return wanted in ("", anchor.request_id, f"{anchor.request_id}:{anchor.position}")
