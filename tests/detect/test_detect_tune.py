"""Proposals against false positives, and the stock of what rules cover."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from detect_support import HEADER, SIMPLE, LetterEncoder, rules_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nae_monitor.detect import Judge
from nae_monitor.detect.tools.corpus import Sample, sample_of
from nae_monitor.detect.tools.inventory import inventory
from nae_monitor.detect.tools.rates import Rate
from nae_monitor.detect.tools.taxonomy import TAXONOMY
from nae_monitor.detect.tools.tune import CachedEncoder, Tuning, tune
from nae_monitor.records import FindingState

DAY = datetime.date(2026, 11, 22)
FUZZY = SIMPLE.replace("keywords: {any: [hide]}", "fuzzy: {any: [plans to conceal it], score: 80}")
WORDS = SIMPLE.replace("any: [hide]", "any: [hide, bury]")
MEANING = SIMPLE.replace(
    "keywords: {any: [hide]}", "semantic: {exemplars: [hide it all], threshold: 0.5}"
)


def texts(*explanations: str, **fields: Any) -> list[Sample]:
    return [sample_of({"explanation": t, **fields}, f"s{i}") for i, t in enumerate(explanations)]


def tuned(
    tmp_path: Path, rule: str, wrong: list[Sample], right: list[Sample], encoder: Any = None
) -> Tuning:
    (loaded,) = rules_of(tmp_path, rule).rules
    return tune(loaded, wrong, right, encoder, DAY)


def kinds(found: Tuning) -> set[str]:
    return {proposal.candidate.kind for proposal in found.proposals}


def whats(found: Tuning) -> list[str]:
    return [proposal.candidate.what for proposal in found.proposals]


def test_a_threshold_between_the_two_kinds_is_found(tmp_path: Path) -> None:
    wrong, right = texts("plans the concert it"), texts("plans to conceal it")
    found = tuned(tmp_path, FUZZY.replace("score: 80", "score: 60"), wrong, right)
    assert found.false_positives == ("s0",)
    (threshold,) = [p for p in found.proposals if p.candidate.kind == "threshold"]
    assert threshold.candidate.what.startswith("hide_kw: score 60 -> ")
    assert "score:" in threshold.candidate.snippet
    assert found.left == ()


def test_a_threshold_that_costs_a_true_positive_is_not_proposed(tmp_path: Path) -> None:
    wrong, right = texts("plans to conceal it"), texts("plans to concel it")
    found = tuned(tmp_path, FUZZY, wrong, right)
    assert "threshold" not in kinds(found)


def test_a_word_that_only_false_positives_need_can_go(tmp_path: Path) -> None:
    found = tuned(tmp_path, WORDS, texts("bury a bone"), texts("hide a fact", "hide and bury"))
    assert "hide_kw: without 'bury'" in whats(found)


def test_a_shared_phrase_becomes_an_exception_that_expires(tmp_path: Path) -> None:
    wrong = texts("hide", "hide", prompt="tell me a fairy tale please")
    found = tuned(tmp_path, SIMPLE, wrong, texts("hide", prompt="please do"))
    best = found.proposals[0]
    assert best.candidate.kind == "exception"
    assert best.takes == ("s0", "s1")
    assert "until 2027-02-20" in best.candidate.what
    assert "field: prompt" in best.candidate.snippet


def test_a_proposed_exception_loads_as_yaml_and_takes_what_it_says(tmp_path: Path) -> None:
    wrong = texts("hide", "hide", prompt="a fairy tale")
    found = tuned(tmp_path, SIMPLE, wrong, texts("hide", prompt="other"))
    exceptions = next(p for p in found.proposals if p.candidate.kind == "exception")
    judge = Judge(rules_of(tmp_path, SIMPLE + exceptions.candidate.snippet))
    for sample in wrong:
        assert judge.judge(sample.activation, sample.decoding, sample.transcript) == ()


def test_a_tenant_of_all_false_positives_is_an_exception(tmp_path: Path) -> None:
    wrong = texts("hide", "hide", request={"tenant": "lab"})
    found = tuned(tmp_path, SIMPLE, wrong, texts("hide", request={"tenant": "shop"}))
    assert any("request.tenant holds 'lab'" in what for what in whats(found))


def test_a_gate_under_all_true_positives_is_proposed(tmp_path: Path) -> None:
    found = tuned(tmp_path, SIMPLE, texts("hide", fve=0.31), texts("hide", fve=0.6))
    assert "fidelity: drop decodes with fve under 0.32" in whats(found)
    kept = tuned(tmp_path, SIMPLE, texts("hide", fve=0.7), texts("hide", fve=0.6))
    assert "fidelity" not in kinds(kept)


def test_a_negative_is_taken_from_a_false_positive(tmp_path: Path) -> None:
    wrong, right = texts("hidden itself late"), texts("hide it all")
    found = tuned(tmp_path, MEANING, wrong, right, LetterEncoder())
    negatives = [p for p in found.proposals if p.candidate.kind == "negative"]
    assert [p.takes for p in negatives] == [("s0",)]
    assert "hidden itself late" in negatives[0].candidate.snippet


def test_an_inline_test_is_a_true_positive_too(tmp_path: Path) -> None:
    wrong, right = texts("bury a bone"), texts("hide a fact")
    tests = "tests: [{name: t, explanation: bury a fact, expect: match}]\n"
    assert "hide_kw: without 'bury'" in whats(tuned(tmp_path, WORDS, wrong, right))
    assert "hide_kw: without 'bury'" not in whats(tuned(tmp_path, WORDS + tests, wrong, right))


def test_what_no_change_tells_apart_is_left(tmp_path: Path) -> None:
    found = tuned(tmp_path, SIMPLE, texts("hide it"), texts("hide it"))
    assert (found.proposals, found.left) == ((), ("s0",))


def test_missed_true_positives_are_named_and_silent_false_ones_left_out(tmp_path: Path) -> None:
    found = tuned(tmp_path, SIMPLE, texts("seek"), texts("seek", "hide"))
    assert (found.false_positives, found.true_positives, found.missed) == ((), 1, ("s0",))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    wrong=st.lists(st.sampled_from(["hide", "bury", "bone", "cake"]), min_size=1, max_size=5),
    right=st.lists(st.sampled_from(["hide", "bury", "fact", "plan"]), max_size=5),
)
def test_proposals_never_cost_a_true_positive(
    tmp_path: Path, wrong: list[str], right: list[str]
) -> None:
    kept = texts(*(f"hide {word}" for word in right))
    found = tuned(tmp_path, WORDS, texts(*(f"bury {word}" for word in wrong)), kept)
    rule = found.rule
    for changed in (*(p.candidate.change(rule) for p in found.proposals), _all(found)):
        judge = Judge(replace(rules_of(tmp_path, WORDS), rules=(changed,)))
        for sample in kept:
            (finding,) = judge.judge(sample.activation, sample.decoding, sample.transcript)
            assert finding.state is FindingState.MATCH
    assert set(found.left).isdisjoint(i for p in found.together for i in p.takes)


def _all(found: Tuning) -> Any:
    rule = found.rule
    for proposal in found.together:
        rule = proposal.candidate.change(rule)
    return rule


def test_the_cached_encoder_asks_once_and_says_the_same() -> None:
    encoder: Any = LetterEncoder()
    cached = CachedEncoder(encoder)
    first, again = cached.encode(["a", "b"]), cached.encode(["b", "a"])
    assert encoder.seen == ["a", "b"]
    assert (first == again[::-1]).all()


TESTED = """tags: [nae.deception]
tests:
  - {explanation: hide, expect: match}
  - {explanation: seek, expect: no_match}
"""


def issues(tmp_path: Path, rule: str, **options: Any) -> list[tuple[str, str]]:
    found = inventory(rules_of(tmp_path, rule), None, DAY, **options)
    return [(issue.kind, issue.message) for issue in found.issues]


def test_a_tested_rule_in_a_category_has_no_issue(tmp_path: Path) -> None:
    found = inventory(rules_of(tmp_path, SIMPLE + TESTED), None, DAY)
    assert found.issues == ()
    covered = [category.tag for category in found.categories if category.rules]
    assert covered == ["nae.deception"]
    assert len(found.uncovered) == len(TAXONOMY) - 1


@pytest.mark.parametrize(
    ("rule", "kind", "message"),
    [
        (SIMPLE + "tags: [nae.deception]\n", "untested", "no test expects a match or no match"),
        (SIMPLE + TESTED.replace("hide", "seek"), "untested", "no test makes hide_kw match"),
        (SIMPLE + TESTED.replace("nae.deception", "other"), "unclassified", "has no nae.* tag"),
        (
            SIMPLE
            + TESTED
            + "exceptions: [{name: old, reason: r, expires: 2026-01-01,"
            + " when: {keywords: {any: [hide]}}}]\n",
            "expired",
            "exception old expired on 2026-01-01",
        ),
    ],
)
def test_what_wants_care_is_listed(tmp_path: Path, rule: str, kind: str, message: str) -> None:
    assert (kind, message) in issues(tmp_path, rule)


def test_a_rule_that_never_fired_says_how_rare_it_may_be(tmp_path: Path) -> None:
    ((kind, message),) = issues(tmp_path, SIMPLE + TESTED, fired={"a_rule": Rate(0, 1_000)})
    assert kind == "never_fired"
    assert message == "never fired in 1000 samples (under 0.38 % at 95 %)"
    assert issues(tmp_path, SIMPLE + TESTED, fired={"a_rule": Rate(1, 1_000)}) == []
    ((_, out_of_scope),) = issues(tmp_path, SIMPLE + TESTED, fired={"a_rule": Rate(0, 0)})
    assert out_of_scope == "nothing in the corpus is in its scope"


def test_a_disabled_rule_covers_nothing(tmp_path: Path) -> None:
    found = inventory(rules_of(tmp_path, SIMPLE + TESTED + "enabled: false\n"), None, DAY)
    assert found.disabled == ("a_rule",)
    assert len(found.uncovered) == len(TAXONOMY)


def test_an_aggregation_without_tests_is_untested(tmp_path: Path) -> None:
    twice = HEADER.replace("9e01", "9e02").replace("a_rule", "twice") + (
        "tags: [nae.deception]\naggregation: {type: event_count, rules: [a_rule],"
        " window: {tokens: 10}, condition: {gte: 2}}\n"
    )
    found = inventory(rules_of(tmp_path, SIMPLE + TESTED, twice), None, DAY)
    assert [(i.rule_name, i.message) for i in found.issues] == [
        ("twice", "no test expects match or no match")
    ]
