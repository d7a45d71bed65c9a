"""Aggregation rules: what they ask of a window of judged samples, as pure functions.

A *sample* is one judged decoding. A window ends at a sample that one of the rules hit (the
*anchor*) and reaches back over tokens, samples or time, so its answer depends on the samples
before it and not on the order in which they arrived. Types after Sigma's correlations.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nae_monitor.detect.response import Actions, Suppression
from nae_monitor.detect.schema import RequiredNla
from nae_monitor.records import FindingState, Severity

AggregationType = Literal[
    "event_count", "event_rate", "value_count", "temporal", "temporal_ordered"
]
WindowUnit = Literal["tokens", "samples", "time"]
STEP_TYPES = ("temporal", "temporal_ordered")
COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "gte": operator.ge,
    "gt": operator.gt,
    "lte": operator.le,
    "lt": operator.lt,
    "eq": operator.eq,
}
RULE_FIELD = "rule"  # value_count over the names of the rules that hit


@dataclass(frozen=True, slots=True)
class Window:
    """How far a window reaches back from its anchor, the anchor included."""

    unit: WindowUnit
    size: int  # tokens, samples, or nanoseconds


@dataclass(frozen=True, slots=True)
class AggregationTest:
    """An aggregation rule's own example: hits at places, among a number of samples."""

    name: str
    hits: tuple[tuple[str, float], ...]  # rule name; token, sample number or seconds from 0
    samples: int | None  # decoded samples in all, hits included; None: from ``rate``
    rate: float | None  # share of tokens that is decoded
    expect: FindingState
    expect_severity: Severity | None = None
    expect_suppressed: int | None = None  # matches that suppression holds back
    expect_routes: frozenset[str] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class AggregationRule:
    """A rule over the hits of other rules, ready to be judged with."""

    id: str  # UUID, lower case
    name: str
    title: str
    version: str
    severity: Severity
    type: AggregationType
    rules: tuple[str, ...]  # names, in the order of the steps
    window: Window
    file: str
    canonical: Mapping[str, Any]  # the document as read; what the fingerprint covers
    group_by: tuple[str, ...] = ("request_id",)
    thresholds: tuple[tuple[str, float], ...] = ()  # comparison, bound; all must hold
    value_field: str = ""  # value_count: the request key whose values are counted
    min_samples: int = 1
    absent: tuple[str, ...] = ()  # rules that must not hit inside the window
    risk_score: int | None = None
    tags: tuple[str, ...] = ()
    enabled: bool = True
    suppress: Suppression | None = None
    actions: Actions = field(default_factory=Actions)
    tests: tuple[AggregationTest, ...] = ()
    header: Mapping[str, Any] = field(default_factory=dict)  # status, description, guide, …

    @property
    def required_nla(self) -> RequiredNla | None:
        """The NLA the rule was written for; None: any."""
        found = self.header.get("required_nla")
        return found if isinstance(found, RequiredNla) else None

    @property
    def needs_samples(self) -> bool:
        """Whether samples without any hit bear on the answer."""
        return self.type == "event_rate" or self.window.unit == "samples" or self.min_samples > 1

    @property
    def within_request(self) -> bool:
        """Whether no group holds samples of two requests."""
        return "request_id" in self.group_by

    def place(self, sample: Sample) -> int:
        """Where a sample stands on the window's axis; unused for windows of samples."""
        return sample.position if self.window.unit == "tokens" else sample.captured_unix_ns

    def is_anchor(self, sample: Sample) -> bool:
        """Whether a window ends at this sample."""
        last = self.rules[-1:] if self.type == "temporal_ordered" else self.rules
        return not (sample.hits | sample.unsure).isdisjoint(last)


@dataclass(frozen=True, slots=True)
class Sample:
    """One judged decoding, as small as aggregation needs it."""

    request_id: str
    started_unix_ns: int  # of the request's turn
    position: int  # tokens, from 0
    captured_unix_ns: int
    fields: Mapping[str, str] = field(compare=False)  # request.KEY
    hits: frozenset[str] = frozenset()  # names of the rules that matched
    unsure: frozenset[str] = frozenset()  # names of the rules that could not decide

    @property
    def identity(self) -> tuple[str, int, int]:
        """What makes two deliveries the same sample."""
        return self.request_id, self.started_unix_ns, self.position


@dataclass(frozen=True, slots=True)
class Answer:
    """What a window says, and why where it cannot say."""

    state: FindingState
    why: str = ""


NO_MATCH = Answer(FindingState.NO_MATCH)


def judge_window(rule: AggregationRule, window: Sequence[Sample]) -> Answer:
    """The answer of one window, oldest sample first, its anchor last.

    A window that meets the condition on fewer samples than ``min_samples``, or only if undecided
    hits count, is undecided.
    """
    surely, possibly = _bounds(rule, window)
    if not possibly:
        return NO_MATCH
    if len(window) < rule.min_samples:
        return Answer(FindingState.UNDECIDED, too_few(len(window), rule))
    if surely:
        return Answer(FindingState.MATCH)
    return Answer(FindingState.UNDECIDED, "rules: a rule it counts could not decide")


def too_few(samples: int, rule: AggregationRule) -> str:
    """The reason given for a window that holds too few samples."""
    return f"samples: the window holds {samples}, the rule asks for {rule.min_samples}"


def _bounds(rule: AggregationRule, window: Sequence[Sample]) -> tuple[bool, bool]:
    """Whether the condition holds whatever undecided hits are, and whether it may hold."""
    if rule.type in STEP_TYPES:
        return _steps(rule, window, sure=True), _steps(rule, window, sure=False)
    low, high = counts(rule, window)
    share = len(window) if rule.type == "event_rate" else 1
    answers = [_meets(rule, count / share) for count in range(low, high + 1)]
    surely, possibly = all(answers), any(answers)
    return (
        surely and not _any_absent(rule, window, sure=True),
        possibly and not _any_absent(rule, window, sure=False),
    )


def counts(rule: AggregationRule, window: Sequence[Sample]) -> tuple[int, int]:
    """What a window counts to, with undecided hits left out and counted in.

    Samples with a hit; distinct values, or rules that hit where the type is about those.
    """
    wanted = frozenset(rule.rules)
    if rule.type == "value_count":
        return _values(rule, window, wanted)
    if rule.type in STEP_TYPES:
        sure = frozenset[str]().union(*(sample.hits for sample in window))
        unsure = frozenset[str]().union(*(sample.unsure for sample in window))
        return len(sure & wanted), len((sure | unsure) & wanted)
    low = sum(1 for sample in window if sample.hits & wanted)
    return low, sum(1 for sample in window if (sample.hits | sample.unsure) & wanted)


def _meets(rule: AggregationRule, figure: float) -> bool:
    return all(COMPARISONS[name](figure, bound) for name, bound in rule.thresholds)


def _values(
    rule: AggregationRule, window: Sequence[Sample], wanted: frozenset[str]
) -> tuple[int, int]:
    certain: set[str] = set()
    possible: set[str] = set()
    for sample in window:
        hits, unsure = sample.hits & wanted, sample.unsure & wanted
        if rule.value_field == RULE_FIELD:
            certain |= hits
            possible |= hits | unsure
            continue
        value = sample.fields.get(rule.value_field, "")
        if hits and value:
            certain.add(value)
        if (hits or unsure) and value:
            possible.add(value)
    return len(certain), len(possible)


def _any_absent(rule: AggregationRule, window: Sequence[Sample], *, sure: bool) -> bool:
    """Whether a step that must not occur did; ``sure`` counts undecided hits of it as hits."""
    barred = frozenset(rule.absent)
    return any((s.hits | (s.unsure if sure else frozenset())) & barred for s in window)


def _steps(rule: AggregationRule, window: Sequence[Sample], *, sure: bool) -> bool:
    """Whether every rule hit, in order at samples of their own where the type asks for that."""
    if _any_absent(rule, window, sure=sure):
        return False
    hits = [sample.hits if sure else sample.hits | sample.unsure for sample in window]
    if rule.type == "temporal":
        return frozenset(rule.rules) <= frozenset().union(*hits)
    if not hits or rule.rules[-1] not in hits[-1]:
        return False
    step = 0
    for names in hits[:-1]:
        if step < len(rule.rules) - 1 and rule.rules[step] in names:
            step += 1
    return step == len(rule.rules) - 1
