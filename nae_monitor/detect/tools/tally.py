"""Counts of a backtest: by rule, and by pack, of decodings and of the requests they belong to.

A match alerts unless it is informational: those say what went on, and leave a request's verdict
alone. What counts is the severity after the rule's fidelity gate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nae_monitor.detect.aggregation import AggregationRule
from nae_monitor.detect.schema import Rule
from nae_monitor.detect.tools.alerting import Fate
from nae_monitor.detect.tools.rates import Rate
from nae_monitor.detect.tools.verdict import Gated, Verdict
from nae_monitor.records import Severity

Group = tuple[str, int, str]  # model, layer, phase
Weight = Literal["alerting", "informational", "undecided"]


def weight_of(severity: Severity) -> Weight:
    """What a match of this severity is."""
    return "informational" if severity is Severity.INFORMATIONAL else "alerting"


@dataclass(slots=True)
class RuleTally:
    """What one rule did. Samples are decodings; requests are the messages they belong to.

    An aggregation rule has no answer for a single sample: its trials are requests, of which its
    groups leave the phase open.
    """

    rule_name: str
    severity: Severity  # as written; what matches had after the gate is in ``severities``
    pack: str
    is_aggregation: bool = False
    groups: dict[Group, list[int]] = field(default_factory=dict)  # hits, judged
    severities: Counter[Severity] = field(default_factory=Counter)  # of matches, after the gate
    gated: Counter[Gated] = field(default_factory=Counter)  # dropped ones are no matches
    undecided: int = 0
    requests: set[str] = field(default_factory=set)
    requests_matched: set[str] = field(default_factory=set)
    requests_alerting: set[str] = field(default_factory=set)
    alerts: Counter[Fate] = field(default_factory=Counter)

    @property
    def rate(self) -> Rate:
        """Matches of judged samples; of requests where the rule is an aggregation."""
        return _sum(self.groups.values())

    @property
    def alerting_rate(self) -> Rate:
        """As :attr:`rate`, of matches that are not informational."""
        hits = sum(
            n for severity, n in self.severities.items() if weight_of(severity) == "alerting"
        )
        return Rate(hits, self.rate.trials)

    @property
    def request_rate(self) -> Rate:
        """Requests with a match, of requests with a judged sample."""
        return Rate(len(self.requests_matched), len(self.requests))

    @property
    def alerting_request_rate(self) -> Rate:
        """As :attr:`request_rate`, of matches that are not informational."""
        return Rate(len(self.requests_alerting), len(self.requests))

    def group_rates(self) -> Mapping[Group, Rate]:
        """Matches by model, layer and phase."""
        return {group: Rate(*self.groups[group]) for group in sorted(self.groups)}

    def phase_rates(self) -> Mapping[str, Rate]:
        """Matches by phase."""
        phases = sorted({phase for _, _, phase in self.groups})
        return {
            phase: _sum(n for group, n in self.groups.items() if group[2] == phase)
            for phase in phases
        }

    def count(self, group: Group, request_id: str, severity: Severity | None) -> None:
        """One trial; ``severity`` is that of its match, None where there was none."""
        counts = self.groups.setdefault(group, [0, 0])
        counts[0] += severity is not None
        counts[1] += 1
        self.requests.add(request_id)
        if severity is not None:
            self.severities[severity] += 1
            self.requests_matched.add(request_id)
            if weight_of(severity) == "alerting":
                self.requests_alerting.add(request_id)


def _sum(counts: Iterable[Sequence[int]]) -> Rate:
    pairs = list(counts)
    return Rate(sum(hits for hits, _ in pairs), sum(trials for _, trials in pairs))


def _no_requests() -> dict[Weight, set[str]]:
    return {"alerting": set(), "informational": set(), "undecided": set()}


@dataclass(slots=True)
class PackTally:
    """What rules did together, of everything that was read, whether or not in their scope.

    A sample or request counts once under each weight, however many rules matched it. Undecided is
    what no rule alerts on and some rule could not decide. Aggregation rules count by request.
    """

    name: str
    rules: frozenset[str]
    samples: int = 0
    requests: set[str] = field(default_factory=set)
    hits: Counter[Weight] = field(default_factory=Counter)  # of samples
    requests_hit: dict[Weight, set[str]] = field(default_factory=_no_requests)

    def take(self, request_id: str, verdict: Verdict) -> None:
        """A judged sample."""
        self.samples += 1
        self.requests.add(request_id)
        weights = {weight_of(verdict.matched[n]) for n in self.rules & verdict.matched.keys()}
        if "alerting" not in weights and self.rules & verdict.undecided:
            weights.add("undecided")
        for weight in weights:
            self.hits[weight] += 1
            self.requests_hit[weight].add(request_id)

    def rate(self, weight: Weight) -> Rate:
        """Samples of that weight."""
        return Rate(self.hits[weight], self.samples)

    def request_rate(self, weight: Weight) -> Rate:
        """Requests with a sample of that weight, or with such a finding of an aggregation rule."""
        found = self.requests_hit[weight]
        if weight == "undecided":
            found = found - self.requests_hit["alerting"]
        return Rate(len(found), len(self.requests))


def packs_of(rules: Iterable[Rule | AggregationRule]) -> Mapping[str, str]:
    """The pack of each rule, by rule name: the directory that its file stands in.

    Where two directories have one name, their paths.
    """
    places = {rule.name: Path(rule.file).resolve().parent for rule in rules}
    paths: dict[str, set[Path]] = {}
    for place in places.values():
        paths.setdefault(place.name, set()).add(place)
    return {
        name: place.name if len(paths[place.name]) == 1 else str(place)
        for name, place in places.items()
    }
