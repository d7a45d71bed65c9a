"""Proposals that rid a rule of false positives and keep every true one, each tried for real.

A proposal counts only where every sample that should match still does, and where no inline test of
the rule fails that passed before.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nae_monitor.detect.calibration import Calibration
from nae_monitor.detect.engine import Judge, semantic_answerer
from nae_monitor.detect.inline_tests import run_inline_tests
from nae_monitor.detect.packs import RuleSet
from nae_monitor.detect.schema import Rule
from nae_monitor.detect.semantic import Encoder
from nae_monitor.detect.tools.corpus import Sample
from nae_monitor.detect.tools.trace import all_answers
from nae_monitor.detect.tools.tune_candidates import Candidate, Seen, candidates
from nae_monitor.detect.tools.tune_exceptions import exception_candidates
from nae_monitor.detect.views import Subject, Views
from nae_monitor.health import Health
from nae_monitor.records import FindingState

MAX_STEPS = 5  # proposals put together
MAX_COMBINED = 40  # proposals tried on top of others
_ORDER = ("threshold", "negative", "fidelity", "scope", "exception", "drop")


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change that keeps every true positive, and the false ones it takes, by sample id."""

    candidate: Candidate
    takes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a rule does to the samples, and what might be done about it."""

    rule: Rule
    false_positives: tuple[str, ...]  # of those given, the ones that match
    true_positives: int  # that match, and keep matching
    missed: tuple[str, ...]  # should match and did not before either
    proposals: tuple[Proposal, ...]  # each for itself, best first
    together: tuple[Proposal, ...]  # one on top of the other; what each takes then
    left: tuple[str, ...]  # false positives that remain after ``together``


def tune(
    rule: Rule,
    wrong: Iterable[Sample],
    right: Iterable[Sample],
    encoder: Encoder | None = None,
    today: datetime.date | None = None,
    calibration: Calibration | None = None,
) -> Tuning:
    """Look for changes.

    Args:
        rule: the rule; enabled or not, it is judged as if it were.
        wrong: samples that should not match.
        right: samples that should.
        encoder: for semantic selections; without one they are unknown.
        today: proposed exceptions expire 90 days on.
        calibration: for percentiles; without one they are unknown.

    Raises:
        ConfigurationError: the encoder fails on the rule's own exemplars.
    """
    cached = None if encoder is None else CachedEncoder(encoder)
    trial = _Trial(list(wrong), list(right), cached, calibration)
    wrong_now, right_now = trial.matching(rule)
    seen = [trial.seen(rule, trial.wrong[i]) for i in sorted(wrong_now)]
    kept = [trial.seen(rule, trial.right[i]) for i in sorted(right_now)]
    day = today or datetime.datetime.now(datetime.UTC).date()
    trial.begin(rule, wrong_now, right_now)
    tried: list[tuple[Candidate, frozenset[int]]] = []
    for candidate in (*candidates(rule, seen), *exception_candidates(rule, seen, kept, day)):
        if takes := trial.takes(rule, candidate, wrong_now):
            tried.append((candidate, takes))
    best = _best(tried)
    together, left = _together(rule, trial, best, wrong_now)
    return Tuning(
        rule=rule,
        false_positives=trial.names(wrong_now),
        true_positives=len(right_now),
        missed=tuple(s.id for i, s in enumerate(trial.right) if i not in right_now),
        proposals=tuple(Proposal(c, trial.names(takes)) for c, takes in best),
        together=tuple(Proposal(c, trial.names(takes)) for c, takes in together),
        left=trial.names(left),
    )


class _Trial:
    """Judges changed rules over the samples."""

    def __init__(
        self,
        wrong: list[Sample],
        right: list[Sample],
        encoder: Encoder | None,
        calibration: Calibration | None,
    ) -> None:
        self.wrong, self.right = wrong, right
        self._encoder, self._calibration = encoder, calibration
        self._keep: frozenset[int] = frozenset()
        self._failing: frozenset[str] = frozenset()

    def begin(self, rule: Rule, wrong_now: frozenset[int], right_now: frozenset[int]) -> None:
        self._keep = right_now
        self._failing = self._failing_tests(rule) if wrong_now else frozenset()

    def seen(self, rule: Rule, sample: Sample) -> Seen:
        known = self._calibration
        percentile = None if known is None else known.percentile(sample.decoding)
        given = sample.activation, sample.decoding, sample.transcript
        semantic = semantic_answerer([rule], self._encoder, Health())
        return Seen(sample, all_answers(rule, Views(Subject.of(*given, percentile)), semantic))

    def _judge(self, rule: Rule) -> Judge:
        only = RuleSet.of([_enabled(rule)])
        return Judge(only, self._encoder, calibration=self._calibration)

    def matching(self, rule: Rule) -> tuple[frozenset[int], frozenset[int]]:
        judge = self._judge(rule)
        return _matching(judge, self.wrong), _matching(judge, self.right)

    def takes(self, rule: Rule, candidate: Candidate, before: frozenset[int]) -> frozenset[int]:
        """The false positives that the change rids ``rule`` of; empty where it may not be made."""
        changed = candidate.change(rule)
        judge = self._judge(changed)
        after = _matching(judge, self.wrong)
        taken = before - after
        if not taken or after - before or not self._keep <= _matching(judge, self.right):
            return frozenset()
        return taken if self._failing_tests(changed) <= self._failing else frozenset()

    def names(self, numbers: frozenset[int]) -> tuple[str, ...]:
        return tuple(self.wrong[number].id for number in sorted(numbers))

    def _failing_tests(self, rule: Rule) -> frozenset[str]:
        results = run_inline_tests(RuleSet.of([rule]), self._encoder, self._calibration)
        return frozenset(result.test_name for result in results if result.outcome == "failed")


def _enabled(rule: Rule) -> Rule:
    return rule if rule.enabled else replace(rule, enabled=True)


def _matching(judge: Judge, samples: Sequence[Sample]) -> frozenset[int]:
    found: set[int] = set()
    for number, sample in enumerate(samples):
        given = sample.activation, sample.decoding, sample.transcript
        if any(f.state is FindingState.MATCH for f in judge.judge(*given)):
            found.add(number)
    return frozenset(found)


def _best(
    tried: list[tuple[Candidate, frozenset[int]]],
) -> list[tuple[Candidate, frozenset[int]]]:
    """Of each family the mildest that takes most, then by what they take."""
    families: dict[str, tuple[Candidate, frozenset[int]]] = {}
    for candidate, takes in tried:
        known = families.get(candidate.family)
        if known is None or len(takes) > len(known[1]):
            families[candidate.family] = candidate, takes
    return sorted(
        families.values(), key=lambda one: (-len(one[1]), _ORDER.index(one[0].kind), one[0].what)
    )


def _together(
    rule: Rule,
    trial: _Trial,
    best: list[tuple[Candidate, frozenset[int]]],
    left: frozenset[int],
) -> tuple[list[tuple[Candidate, frozenset[int]]], frozenset[int]]:
    """Proposals one on top of the other until nothing is left or none helps."""
    chosen: list[tuple[Candidate, frozenset[int]]] = []
    while left and len(chosen) < MAX_STEPS:
        used = {candidate.family for candidate, _ in chosen}
        options = [
            (candidate, trial.takes(rule, candidate, left) if chosen else takes)
            for candidate, takes in best[: MAX_COMBINED if chosen else 1]
            if candidate.family not in used
        ]
        best_now = max(options, key=lambda one: len(one[1]), default=None)
        if best_now is None or not best_now[1]:
            break
        chosen.append(best_now)
        rule, left = best_now[0].change(rule), left - best_now[1]
    return chosen, left


class CachedEncoder:
    """An encoder that is asked for a text once, as the same texts are judged over and over."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._rows: dict[str, Any] = {}

    def encode(self, texts: Sequence[str]) -> Any:
        """An array [n, e], as :class:`~nae_monitor.detect.semantic.Encoder`."""
        for text in texts:
            if text not in self._rows:
                self._rows[text] = np.asarray(self._encoder.encode([text]))[0]
        return np.stack([self._rows[text] for text in texts])
