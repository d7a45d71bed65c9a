"""Runs the examples that rules carry, with scores given by the test or by a real encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from nae_monitor.detect.aggregation_tests import fault_of, response_fault
from nae_monitor.detect.calibration import Calibration
from nae_monitor.detect.engine import semantic_answerer
from nae_monitor.detect.evaluation import SemanticAnswerer, evaluate_rule, rate
from nae_monitor.detect.packs import RuleSet
from nae_monitor.detect.schema import InlineTest, Rule, Selection
from nae_monitor.detect.semantic import Encoder, SemanticMatcher
from nae_monitor.detect.views import Hit, Subject, View, Views
from nae_monitor.health import Health
from nae_monitor.records import FindingState, Request, Severity


@dataclass(frozen=True, slots=True)
class TestResult:
    """How one example of one rule came out; ``message`` says why unless it passed."""

    __test__ = False  # pytest would take the name for a test class

    rule_name: str
    test_name: str
    outcome: Literal["passed", "failed", "skipped"]
    message: str = ""


def run_inline_tests(
    rule_set: RuleSet, encoder: Encoder | None = None, calibration: Calibration | None = None
) -> list[TestResult]:
    """Run every example of every rule, disabled rules included; scope is not applied.

    Without an encoder, a test whose answer hangs on a semantic selection it gives no score for is
    skipped, not passed. A test that gives no percentile is judged at 100, or, with a calibration
    set of FVE values, at that of its FVE.

    Raises:
        ConfigurationError: the encoder fails on the rules' own exemplars.
    """
    semantic = semantic_answerer(rule_set.rules, encoder, Health())
    results = [
        _run(rule, _calibrated(test, calibration), semantic)
        for rule in rule_set.rules
        for test in rule.tests
    ]
    for aggregation in rule_set.aggregations:
        for example in aggregation.tests:
            fault = fault_of(aggregation, example)
            outcome: Literal["passed", "failed"] = "failed" if fault else "passed"
            results.append(TestResult(aggregation.name, example.name, outcome, fault))
    return results


def _calibrated(test: InlineTest, calibration: Calibration | None) -> InlineTest:
    if calibration is None or calibration.metric != "fve" or test.gives_percentile:
        return test
    return replace(test, percentile=calibration.percentile_of(test.fidelity))


def _run(rule: Rule, test: InlineTest, semantic: SemanticAnswerer) -> TestResult:
    outcome = evaluate_rule(
        rule, Views(subject_of(test)), given_scores(test.scores, semantic), None
    )
    if outcome.state is FindingState.UNDECIDED:
        return TestResult(rule.name, test.name, "skipped", "; ".join(outcome.undecided))
    by_percentile = rule.fidelity is not None and rule.fidelity.metric == "percentile"
    figure = test.percentile if by_percentile else test.fidelity
    rating = rate(rule, figure, test.support, test.unsupported)
    matched = outcome.state is FindingState.MATCH and not rating.dropped
    fault = _fault(test, matched, rating.severity)
    if matched and not fault:
        fault = _response_fault(rule, test)
    return TestResult(rule.name, test.name, "failed" if fault else "passed", fault)


def subject_of(test: InlineTest) -> Subject:
    """What an example shows a rule: its texts, its fidelity and the figures it gives."""
    known = {"fve": test.fidelity, "percentile": test.percentile}
    return Subject(
        test.explanation,
        test.prompt,
        test.output,
        test.token,
        test.request,
        figure=known.get,
        given=test.scores,
    )


def _fault(test: InlineTest, matched: bool, severity: Severity) -> str:
    if matched != test.expect_match:
        said, wanted = ("matched", "no match") if matched else ("did not match", "a match")
        return f"{said}, expected {wanted}"
    if matched and test.expect_severity not in (None, severity):
        return f"severity {severity.value}, expected {test.expect_severity}"
    return ""


def _response_fault(rule: Rule, test: InlineTest) -> str:
    wanted = test.expect_suppressed, test.expect_routes
    named = {"group_id": "test", "model": "test", **test.request}
    request = Request(
        request_id=named.pop("request_id", "test"),
        group_id=named.pop("group_id"),
        model=named.pop("model"),
        session_id=named.pop("session_id", None),
        tenant=named.pop("tenant", None),
        attributes=named,
    )
    return response_fault(rule.suppress, rule.actions.routes, test.times_s, *wanted, request)


def given_scores(scores: Mapping[str, float], semantic: SemanticAnswerer) -> SemanticAnswerer:
    """Answer from the test's scores first; a given score stands for a kept margin."""

    def answer(rule: Rule, selection: Selection, view: View) -> tuple[list[Hit], str]:
        score = scores.get(selection.name)
        matcher = selection.matcher
        if score is None or not isinstance(matcher, SemanticMatcher):
            return semantic(rule, selection, view)
        return ([Hit(0, len(view.text), score)] if score >= matcher.threshold else []), ""

    return answer
