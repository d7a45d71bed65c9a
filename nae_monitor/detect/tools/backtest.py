"""Rules over many decodings: how often each matches, where, and against what was expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nae_monitor.detect.engine import Judge
from nae_monitor.detect.schema import Rule
from nae_monitor.detect.tools.corpus import Sample
from nae_monitor.detect.tools.rates import Rate
from nae_monitor.errors import ConfigurationError, InputDataError
from nae_monitor.records import FindingState
from nae_monitor.strict_yaml import read_document

MAX_LISTED = 1_000  # unexpected and missing hits that are listed one by one


@dataclass(slots=True)
class RuleTally:
    """What one rule did. Samples are decodings; requests are the messages they belong to."""

    rule_name: str
    severity: str
    judged: Counter[str] = field(default_factory=Counter)  # samples in scope, by phase
    matched: Counter[str] = field(default_factory=Counter)
    undecided: int = 0
    requests: set[str] = field(default_factory=set)
    requests_matched: set[str] = field(default_factory=set)

    @property
    def rate(self) -> Rate:
        """Matches of judged samples."""
        return Rate(self.matched.total(), self.judged.total())

    @property
    def request_rate(self) -> Rate:
        """Requests with a match, of requests with a judged sample."""
        return Rate(len(self.requests_matched), len(self.requests))

    def phase_rates(self) -> Mapping[str, Rate]:
        """Matches by phase."""
        return {phase: Rate(self.matched[phase], n) for phase, n in sorted(self.judged.items())}


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
) -> Backtest:
    """Judge every sample.

    Args:
        judge: the rules.
        samples: the corpus; read once.
        expectations: sample or request id -> the rules that must match; where a request is named,
            on any of its samples. It replaces what a sample itself expects.
        progress: called with the number of samples done.
    """
    run = _Run(judge, expectations or {})
    for sample in samples:
        run.take(sample)
        if progress is not None:
            progress(run.outcome.samples)
    run.finish()
    return run.outcome


class _Run:
    def __init__(self, judge: Judge, expectations: Mapping[str, frozenset[str]]) -> None:
        self.outcome = Backtest()
        self._judge = judge
        self._expectations = expectations
        self._rules = [rule for rule in judge.rule_set.rules if rule.enabled]
        self._seen: dict[str, set[str]] = {}  # expected id -> rules that matched
        for rule in self._rules:
            self.outcome.tallies[rule.name] = RuleTally(rule.name, rule.severity.value)

    def take(self, sample: Sample) -> None:
        activation = sample.activation
        findings = self._judge.judge(activation, sample.decoding, sample.transcript)
        matched = {f.rule_name for f in findings if f.state is FindingState.MATCH}
        undecided = {f.rule_name for f in findings if f.state is FindingState.UNDECIDED}
        for rule in self._rules:
            if rule.scope.admits(activation):
                self._count(rule, sample, rule.name in matched, rule.name in undecided)
        group = self.outcome.groups.setdefault((activation.request.model, activation.layer), [0, 0])
        group[0] += bool(matched)
        group[1] += 1
        self.outcome.samples += 1
        self._compare(sample, matched)

    def _count(self, rule: Rule, sample: Sample, matched: bool, undecided: bool) -> None:
        tally = self.outcome.tallies[rule.name]
        request_id = sample.activation.request.request_id
        tally.judged[sample.activation.phase.value] += 1
        tally.requests.add(request_id)
        tally.undecided += undecided
        if matched:
            tally.matched[sample.activation.phase.value] += 1
            tally.requests_matched.add(request_id)

    def _compare(self, sample: Sample, matched: set[str]) -> None:
        request_id = sample.activation.request.request_id
        named = [name for name in {sample.id, request_id} if name in self._expectations]
        for name in named:
            self._seen.setdefault(name, set()).update(matched)
        if named:
            expected = frozenset[str]().union(*(self._expectations[name] for name in named))
        else:
            expected = sample.expected or frozenset()
            for rule in sorted(expected - matched):
                self._note("missing", sample.id, rule)
        for rule in sorted(matched - expected):
            self._note("unexpected", sample.id, rule)

    def _note(self, kind: str, sample_id: str, rule: str) -> None:
        self.outcome.counts[kind] += 1
        listed: list[Difference] = getattr(self.outcome, kind)
        if len(listed) < MAX_LISTED:
            listed.append(Difference(sample_id, rule))

    def finish(self) -> None:
        """What was expected and never came, samples that were not there included."""
        for name, expected in self._expectations.items():
            for rule in sorted(expected - self._seen.get(name, set())):
                self._note("missing", name, rule)


def read_expectations(path: Path, known: Iterable[str]) -> dict[str, frozenset[str]]:
    """A YAML or JSON mapping of sample or request id to the rules that must match.

    Raises:
        InputDataError: it is not that, or names a rule that is not among ``known``.
    """
    try:
        value = read_document(path).value
    except ConfigurationError as error:
        raise InputDataError(str(error)) from error
    if not isinstance(value, dict):
        raise InputDataError(f"{path}: must be a mapping of ids to lists of rule names")
    rules = frozenset(known)
    for name, expected in value.items():
        is_list = isinstance(expected, list) and all(isinstance(rule, str) for rule in expected)
        if not is_list:
            raise InputDataError(f"{path}: {name} must have a list of rule names")
        if foreign := sorted(set(expected) - rules):
            raise InputDataError(f"{path}: {name} expects {foreign[0]!r}, which is no rule here")
    return {name: frozenset(expected) for name, expected in value.items()}
