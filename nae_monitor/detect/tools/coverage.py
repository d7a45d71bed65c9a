"""Which answers of which selections a rule's own tests exercise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nae_monitor.detect.conditions import And, Expression, Not, evaluate
from nae_monitor.detect.engine import semantic_answerer
from nae_monitor.detect.evaluation import SemanticAnswerer
from nae_monitor.detect.inline_tests import given_scores, subject_of
from nae_monitor.detect.schema import InlineTest, Rule
from nae_monitor.detect.semantic import Encoder
from nae_monitor.detect.tools.trace import all_answers
from nae_monitor.detect.views import Views
from nae_monitor.health import Health


@dataclass(frozen=True, slots=True)
class SelectionCoverage:
    """What the tests ask of one selection."""

    name: str
    hit: bool  # some test makes it match
    missed: bool  # some test makes it not match
    negative_tested: bool  # some no_match test hangs on it: the other answer would have matched

    @property
    def points(self) -> int:
        """0 to 3."""
        return self.hit + self.missed + self.negative_tested


@dataclass(frozen=True, slots=True)
class RuleCoverage:
    """What the tests ask of one rule."""

    rule_name: str
    matched: bool  # some test expects a match
    not_matched: bool  # some test expects none
    selections: tuple[SelectionCoverage, ...]

    @property
    def percent(self) -> float:
        """Of the points there are: two of the rule, three of each selection; 0..100."""
        points = self.matched + self.not_matched + sum(s.points for s in self.selections)
        return 100.0 * points / (2 + 3 * len(self.selections))


def coverage(rules: Sequence[Rule], encoder: Encoder | None = None) -> list[RuleCoverage]:
    """The coverage of each rule by its own tests.

    A selection that a test leaves unknown (no encoder, no score) is not exercised by it.

    Raises:
        ConfigurationError: the encoder fails on the rules' own exemplars.
    """
    semantic = semantic_answerer(rules, encoder, Health())
    return [_of_rule(rule, semantic) for rule in rules]


def _of_rule(rule: Rule, semantic: SemanticAnswerer) -> RuleCoverage:
    condition: Expression = And((rule.condition, *(Not(e.when) for e in rule.exceptions)))
    rows = [(test, _answers(rule, test, semantic)) for test in rule.tests]
    negatives = [answers for test, answers in rows if not test.expect_match]
    return RuleCoverage(
        rule.name,
        any(test.expect_match for test in rule.tests),
        bool(negatives),
        tuple(
            SelectionCoverage(
                name,
                hit=any(answers[name] is True for _, answers in rows),
                missed=any(answers[name] is False for _, answers in rows),
                negative_tested=any(_hangs_on(condition, answers, name) for answers in negatives),
            )
            for name in rule.selections
        ),
    )


def _answers(rule: Rule, test: InlineTest, semantic: SemanticAnswerer) -> dict[str, bool | None]:
    found = all_answers(rule, Views(subject_of(test)), given_scores(test.scores, semantic))
    return {name: answer.matched for name, answer in found.items()}


def _hangs_on(condition: Expression, answers: dict[str, bool | None], name: str) -> bool:
    """Whether the condition is false and would not be, had ``name`` given its other answer."""
    answer = answers[name]
    if answer is None or evaluate(condition, answers) is not False:
        return False
    return evaluate(condition, {**answers, name: not answer}) is not False
