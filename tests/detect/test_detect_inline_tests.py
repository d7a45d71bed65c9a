from pathlib import Path

from detect_support import SIMPLE, LetterEncoder, rules_of

from nae_monitor.detect import run_inline_tests

SEMANTIC = SIMPLE.replace(
    "condition: hide_kw",
    "sem: {semantic: {exemplars: [hide the truth], threshold: 0.95}}, condition: 1 of them",
)


def outcomes(tmp_path: Path, rule: str, tests: str, encoder: object = None) -> list[str]:
    rules = rules_of(tmp_path, rule + "tests:\n" + tests)
    return [result.outcome for result in run_inline_tests(rules, encoder)]  # type: ignore[arg-type]


def test_expectations_that_hold_pass_and_others_fail(tmp_path: Path) -> None:
    tests = """
  - {explanation: they hide, expect: match}
  - {explanation: they seek, expect: match}
  - {explanation: they hide, expect: no_match}
  - {explanation: they hide, expect: {match: true, severity: medium}}
  - {explanation: they hide, expect: {severity: low}}
  - {explanation: they seek, expect: {match: false}}
"""
    assert outcomes(tmp_path, SIMPLE, tests) == [
        "passed",
        "failed",
        "failed",
        "passed",
        "failed",
        "passed",
    ]


def test_a_failure_says_what_happened(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, SIMPLE + "tests: [{name: n, explanation: seek, expect: match}]\n")
    (result,) = run_inline_tests(rules)
    assert (result.rule_name, result.test_name) == ("a_rule", "n")
    assert result.message == "did not match, expected a match"


def test_a_score_stands_in_for_the_encoder_at_its_threshold(tmp_path: Path) -> None:
    tests = """
  - {explanation: x, scores: {sem: 0.95}, expect: match}
  - {explanation: x, scores: {sem: 0.94}, expect: no_match}
"""
    assert outcomes(tmp_path, SEMANTIC, tests) == ["passed", "passed"]


def test_a_test_that_hangs_on_a_missing_model_is_skipped(tmp_path: Path) -> None:
    tests = """
  - {explanation: a b, expect: no_match}
  - {explanation: they hide, expect: match}
"""
    assert outcomes(tmp_path, SEMANTIC, tests) == ["skipped", "passed"]
    assert outcomes(tmp_path, SEMANTIC, tests, LetterEncoder()) == ["passed", "passed"]


def test_tests_run_outside_the_scope_and_for_disabled_rules(tmp_path: Path) -> None:
    rule = SIMPLE + "scope: {min_token_index: 500}\nenabled: false\n"
    assert outcomes(tmp_path, rule, "  - {explanation: hide, expect: match}\n") == ["passed"]
