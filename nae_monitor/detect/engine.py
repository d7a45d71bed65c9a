"""The judge: every rule of a set against one decoded activation."""

from __future__ import annotations

import datetime
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from nae_monitor.detect.calibration import Calibration
from nae_monitor.detect.evaluation import (
    Outcome,
    Rating,
    SemanticAnswerer,
    evaluate_rule,
    rate,
)
from nae_monitor.detect.matching import TextMatchers
from nae_monitor.detect.packs import RuleSet
from nae_monitor.detect.schema import Rule, Selection
from nae_monitor.detect.semantic import Comparison, Embedder, Encoder
from nae_monitor.detect.support import COMPONENT, Reconstructing, support_of
from nae_monitor.detect.text import normalise
from nae_monitor.detect.views import Hit, Subject, View, Views
from nae_monitor.health import Health
from nae_monitor.records import Activation, Decoding, Finding, FindingState, Transcript

CACHED_TEXTS = 32  # a request's prompt is normalised once, not once a token


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a rule's fidelity gate kept from becoming a finding; ``counter`` says why."""

    rule_name: str
    state: FindingState  # that the finding would have had
    counter: str


class Judge:
    """Judges decodings by a rule set.

    The same rules, encoder and input give the same findings in the same order, whatever was
    judged before. Nothing passes out of :meth:`judge`: a rule that fails is counted and undecided.
    Safe to call from several threads.

    Args:
        rule_set: rules from :func:`nae_monitor.detect.packs.load_rules`; disabled ones are skipped.
        encoder: for semantic selections; without one they are unknown.
        health: where counters go: ``rules.judged``, ``rules.matched``, ``rules.undecided``,
            ``rules.dropped_low_fidelity``, ``rules.dropped_low_support``,
            ``rules.dropped_unsupported``, ``rules.dropped_unscored``, ``rules.support_asked`` and
            ``rules.support_microseconds`` (what measuring it took), and those of
            :class:`nae_monitor.detect.matching.TextMatchers`.
        calibration: for percentiles; without one they are unknown.
        reconstructor: for the support of what matched; without one it is unknown.

    Raises:
        ConfigurationError: the encoder fails on the rules' own exemplars.
    """

    def __init__(
        self,
        rule_set: RuleSet,
        encoder: Encoder | None = None,
        health: Health | None = None,
        *,
        calibration: Calibration | None = None,
        reconstructor: Reconstructing | None = None,
    ) -> None:
        self._calibration, self._reconstructor = calibration, reconstructor
        self.rule_set = rule_set
        self._health = health or Health()
        self._rules = [rule for rule in rule_set.rules if rule.enabled]
        self._semantic = semantic_answerer(self._rules, encoder, self._health)
        self._texts = TextMatchers(self._rules, self._health)
        self._normalise = functools.lru_cache(maxsize=CACHED_TEXTS)(normalise)

    def judge(
        self, activation: Activation, decoding: Decoding, transcript: Transcript
    ) -> tuple[Finding, ...]:
        """The rules that match this decoding or cannot say, ordered by rule id."""
        weighed = self.weigh(activation, decoding, transcript)
        return tuple(one for one in weighed if isinstance(one, Finding))

    def weigh(
        self, activation: Activation, decoding: Decoding, transcript: Transcript
    ) -> tuple[Finding | Dropped, ...]:
        """What :meth:`judge` finds, and what fidelity gates dropped, ordered by rule id."""
        known = self._calibration
        percentile = None if known is None else known.percentile(decoding)
        subject = Subject.of(activation, decoding, transcript, percentile)
        views = Views(subject, self._normalise)
        found = [self._judge(rule, views, activation, decoding) for rule in self._rules]
        return tuple(one for one in found if one is not None)

    def _judge(
        self, rule: Rule, views: Views, activation: Activation, decoding: Decoding
    ) -> Finding | Dropped | None:
        outcome = self._outcome(rule, views, activation)
        if outcome is None:
            return None
        self._health.count("rules.judged")
        if outcome.state is FindingState.NO_MATCH:
            return None
        unsupported = _unsupported(decoding)
        rating, support, support_s = self._rated(rule, outcome, views.subject, unsupported)
        if rating.dropped:
            self._health.count(rating.dropped)
            return Dropped(rule.name, outcome.state, rating.dropped)
        matched = outcome.state is FindingState.MATCH
        self._health.count("rules.matched" if matched else "rules.undecided")
        return Finding(
            request_id=activation.request.request_id,
            position=activation.position,
            rule_id=rule.id,
            rule_name=rule.name,
            rule_version=rule.version,
            title=rule.title,
            severity=rating.severity,
            state=outcome.state,
            spans=outcome.spans,
            undecided=outcome.undecided,
            fve=decoding.fve,
            support=support,
            support_asked=support_s is not None,
            support_s=support_s,
            unsupported=unsupported,
            unsupported_decodes=decoding.support_decodes,
            unsupported_s=decoding.support_s,
            tags=(*rating.tags, *rule.actions.tags),
            risk_score=rating.risk_score,
            routes=rule.actions.routes,
        )

    def _rated(
        self, rule: Rule, outcome: Outcome, subject: Subject, unsupported: float | None
    ) -> tuple[Rating, float | None, float | None]:
        """The gate's rating; the support and the seconds it took, where the rule asks for it.

        It is measured on a match only; None as the seconds: it was not asked for.
        """
        gate = rule.fidelity
        figure = subject.figure(gate.metric) if gate else None
        rating = rate(rule, figure, unsupported=unsupported)
        asked = gate is not None and gate.min_support is not None
        if rating.dropped or not asked or outcome.state is not FindingState.MATCH:
            return rating, None, None
        began_s = time.perf_counter()
        support = self._support(outcome, subject)
        taken_s = time.perf_counter() - began_s
        self._health.count("rules.support_asked")
        self._health.count("rules.support_microseconds", round(taken_s * 1e6))
        return rate(rule, figure, support, unsupported), support, taken_s

    def _support(self, outcome: Outcome, subject: Subject) -> float | None:
        """What the words that matched carry; None where that cannot be measured."""
        support: float | None = None
        reconstructor, vector = self._reconstructor, subject.vector
        if reconstructor is not None and vector is not None and not self._health.is_open(COMPONENT):
            with self._health.guard(COMPONENT):
                support = support_of(reconstructor, vector, subject.explanation, outcome.spans)
        return support

    def _outcome(self, rule: Rule, views: Views, activation: Activation) -> Outcome | None:
        """The rule's answer; None out of its scope."""
        component = f"detect.rule.{rule.name}"
        outcome = Outcome(FindingState.UNDECIDED, undecided=("rule: it failed",))
        if self._health.is_open(component):
            return outcome
        with self._health.guard(component):
            if not rule.scope.admits(activation):
                return None
            day = _day(activation.captured_unix_ns)
            outcome = evaluate_rule(rule, views, self._semantic, day, self._texts)
        return outcome


def semantic_answerer(
    rules: Sequence[Rule], encoder: Encoder | None, health: Health
) -> SemanticAnswerer:
    """Answers semantic selections by ``encoder``, or as unknown without one."""
    if encoder is None:
        return lambda rule, selection, view: ([], "no sentence encoder")
    embedder = Embedder(encoder, health)
    comparisons = {
        (rule.id, name): Comparison.of(matcher, embedder)
        for rule in rules
        for name, matcher in rule.semantic_selections()
    }

    def answer(rule: Rule, selection: Selection, view: View) -> tuple[list[Hit], str]:
        return comparisons[rule.id, selection.name].find(view.text)

    return answer


def _unsupported(decoding: Decoding) -> float | None:
    """P(unsupported) of the decode; None: unknown."""
    return None if decoding.support is None else round(1 - decoding.support, 4)


def _day(unix_ns: int) -> datetime.date | None:
    """The UTC day of a capture; None where the time is not known."""
    if unix_ns <= 0:
        return None
    return datetime.datetime.fromtimestamp(unix_ns / 1e9, datetime.UTC).date()
