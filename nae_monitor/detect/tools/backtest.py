"""Rules over many decodings: how often each matches, where, and against what was expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from nae_monitor.detect.aggregation import AggregationRule
from nae_monitor.detect.engine import Judge
from nae_monitor.detect.schema import Rule
from nae_monitor.detect.tools.alerting import Alerting
from nae_monitor.detect.tools.corpus import Sample
from nae_monitor.detect.tools.journal import Journal
from nae_monitor.detect.tools.rates import Rate
from nae_monitor.detect.tools.tally import Group, PackTally, RuleTally, packs_of, weight_of
from nae_monitor.detect.tools.verdict import Verdict, verdict_of
from nae_monitor.detect.tools.windows import CorpusWindows, Names
from nae_monitor.records import Finding, FindingState, Request, Severity

MAX_LISTED = 1_000  # unexpected and missing hits that are listed one by one


@dataclass(frozen=True, slots=True)
class Difference:
    """A hit that was not expected, or an expected one that did not come."""

    sample_id: str
    rule_name: str


@dataclass(slots=True)
class Backtest:
    """The outcome. ``unexpected`` and ``missing`` list the first; the counts hold all."""

    samples: int = 0
    tallies: dict[str, RuleTally] = field(default_factory=dict)
    packs: list[PackTally] = field(default_factory=list)
    together: PackTally = field(default_factory=lambda: PackTally("", frozenset()))  # every rule
    groups: dict[tuple[str, int], list[int]] = field(default_factory=dict)  # model, layer: hits, n
    unexpected: list[Difference] = field(default_factory=list)
    missing: list[Difference] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def group_rates(self) -> Mapping[tuple[str, int], Rate]:
        """Samples with any match, by model and layer."""
        return {key: Rate(hits, n) for key, (hits, n) in sorted(self.groups.items())}


def backtest(
    judge: Judge,
    samples: Iterable[Sample],
    expectations: Mapping[str, frozenset[str]] | None = None,
    progress: Callable[[int], None] | None = None,
    journal: Journal | None = None,
) -> Backtest:
    """Judge every sample, by aggregation rules too.

    Args:
        judge: the rules.
        samples: the corpus; read once.
        expectations: sample or request id -> the rules that must match; where a request is named,
            on any of its samples. It replaces what a sample itself expects. An aggregation rule is
            expected of a request, by whichever of its samples.
        progress: called with the number of samples done.
        journal: verdicts known already are taken from it, new ones are written to it.

    Raises:
        InputDataError: the journal is of another corpus.
    """
    run = _Run(judge, expectations or {}, journal)
    for sample in samples:
        run.take(sample)
        if progress is not None:
            progress(run.outcome.samples)
    run.finish()
    return run.outcome


class _Run:
    def __init__(
        self,
        judge: Judge,
        expectations: Mapping[str, frozenset[str]],
        journal: Journal | None,
    ) -> None:
        self.outcome = Backtest()
        self._judge = judge
        self._journal = journal
        self._expectations = expectations
        rule_set = judge.rule_set
        self._rules = [rule for rule in rule_set.rules if rule.enabled]
        self._aggregations = [rule for rule in rule_set.aggregations if rule.enabled]
        self._window_names = frozenset(rule.name for rule in self._aggregations)
        self._by_name = {rule.name: rule for rule in self._rules}
        self._windows = CorpusWindows(rule_set)
        self._alerting = Alerting()
        self._seen: dict[str, set[str]] = {}  # expected id -> rules that matched
        self._of_requests: dict[str, _OfRequest] = {}
        self._prepare()

    def _prepare(self) -> None:
        """An empty tally for each rule and each pack."""
        every: list[Rule | AggregationRule] = [*self._rules, *self._aggregations]
        packs = packs_of(every)
        for rule in every:
            is_aggregation = rule.name in self._window_names
            tally = RuleTally(rule.name, rule.severity, packs[rule.name], is_aggregation)
            self.outcome.tallies[rule.name] = tally
        for pack in sorted(set(packs.values())):
            names = frozenset(name for name, of_rule in packs.items() if of_rule == pack)
            self.outcome.packs.append(PackTally(pack, names))
        self.outcome.together = PackTally("", frozenset(packs))

    def take(self, sample: Sample) -> None:
        activation = sample.activation
        verdict = self._verdict(sample)
        self._alerting.saw(activation)
        for rule in self._rules:
            if rule.scope.admits(activation):
                self._count(rule, sample, verdict)
        for pack in (*self.outcome.packs, self.outcome.together):
            pack.take(activation.request.request_id, verdict)
        group = self.outcome.groups.setdefault((activation.request.model, activation.layer), [0, 0])
        group[0] += bool(verdict.matched)
        group[1] += 1
        self.outcome.samples += 1
        self._compare(sample, verdict.names)
        self._settle(self._windows.take(activation, verdict.names, verdict.undecided))

    def _verdict(self, sample: Sample) -> Verdict:
        known = self._journal.recall(sample) if self._journal is not None else None
        if known is not None:
            return known
        verdict = verdict_of(self._judge, self._by_name, sample)
        if self._journal is not None:
            self._journal.note(sample, verdict)
        return verdict

    def _count(self, rule: Rule, sample: Sample, verdict: Verdict) -> None:
        tally = self.outcome.tallies[rule.name]
        activation = sample.activation
        request = activation.request
        severity = verdict.matched.get(rule.name)
        group = request.model, activation.layer, activation.phase.value
        tally.count(group, request.request_id, severity)
        tally.undecided += rule.name in verdict.undecided
        if gated := verdict.gated.get(rule.name):
            tally.gated[gated] += 1
        if severity is not None:
            self._alerting.hit(request, rule, activation.position, severity)

    def _compare(self, sample: Sample, matched: Names) -> None:
        request_id = sample.activation.request.request_id
        of_request = self._of_requests.get(request_id)
        if of_request is None:
            where = sample.activation.request.model, sample.activation.layer, ""
            of_request = self._of_requests[request_id] = _OfRequest(
                sample.activation.request, where
            )
        named = [name for name in {sample.id, request_id} if name in self._expectations]
        for name in named:
            self._seen.setdefault(name, set()).update(matched)
        if named:
            expected = frozenset[str]().union(*(self._expectations[name] for name in named))
        else:
            expected = sample.expected or frozenset()
            for rule in sorted(expected - matched - self._window_names):
                self._note("missing", sample.id, rule)
        of_request.expected |= expected & self._window_names
        for rule in sorted(matched - expected):
            self._note("unexpected", sample.id, rule)

    def _note(self, kind: str, sample_id: str, rule: str) -> None:
        self.outcome.counts[kind] += 1
        listed: list[Difference] = getattr(self.outcome, kind)
        if len(listed) < MAX_LISTED:
            listed.append(Difference(sample_id, rule))

    def _settle(self, findings: Iterable[Finding]) -> None:
        """Take what aggregation rules found on requests."""
        for finding in findings:
            of_request = self._of_requests[finding.request_id]
            if finding.state is FindingState.MATCH:
                of_request.matched[finding.rule_name] = finding.severity
            else:
                of_request.undecided.add(finding.rule_name)
            self._alerting.add(of_request.request, [finding])
            self._count_in_packs(finding)

    def _count_in_packs(self, finding: Finding) -> None:
        is_match = finding.state is FindingState.MATCH
        weight = weight_of(finding.severity) if is_match else "undecided"
        for pack in (*self.outcome.packs, self.outcome.together):
            if finding.rule_name in pack.rules:
                pack.requests_hit[weight].add(finding.request_id)

    def finish(self) -> None:
        """What windows say, what was expected and never came, and the fate of the alerts."""
        self._settle(self._windows.finish())
        for request_id, of_request in self._of_requests.items():
            for rule in self._aggregations:
                self._count_windows(self.outcome.tallies[rule.name], request_id, of_request)
            for name in sorted(of_request.expected - of_request.matched.keys()):
                self._note("missing", request_id, name)
            for name in sorted(of_request.matched.keys() - of_request.expected):
                self._note("unexpected", request_id, name)
        for name, expected in self._expectations.items():
            told = self._window_names if name in self._seen else frozenset()
            for rule_name in sorted(expected - self._seen.get(name, set()) - told):
                self._note("missing", name, rule_name)
        for alerted in self._alerting.fates(self._judge.rule_set.suppressions()):
            self.outcome.tallies[alerted.alert.rule_name].alerts[alerted.fate] += 1

    def _count_windows(self, tally: RuleTally, request_id: str, of_request: _OfRequest) -> None:
        severity = of_request.matched.get(tally.rule_name)
        tally.count(of_request.where, request_id, severity)
        if severity is None and tally.rule_name in of_request.undecided:
            tally.undecided += 1


@dataclass(slots=True)
class _OfRequest:
    """What is known of one request: where it was read, and what aggregation rules say of it."""

    request: Request
    where: Group
    matched: dict[str, Severity] = field(default_factory=dict)
    undecided: set[str] = field(default_factory=set)
    expected: set[str] = field(default_factory=set)
