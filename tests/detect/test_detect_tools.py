"""Rates, corpora, backtests, differences, locks, costs and explanations."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path
from typing import Any

import pytest
from detect_support import HEADER, SIMPLE, LetterEncoder, rules_of
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.detect import Judge
from nae_monitor.detect.tools.backtest import Backtest, backtest
from nae_monitor.detect.tools.bench import bench
from nae_monitor.detect.tools.corpus import Sample, read_corpus, sample_of
from nae_monitor.detect.tools.coverage import coverage
from nae_monitor.detect.tools.difference import rule_changes, verdict_changes
from nae_monitor.detect.tools.expectations import read_expectations
from nae_monitor.detect.tools.explain import explain
from nae_monitor.detect.tools.lock import lock_faults, lock_of, lock_text, read_lock
from nae_monitor.detect.tools.rates import Z_95, Rate
from nae_monitor.errors import InputDataError

RICH = (
    HEADER
    + """\
detection:
  word: {keywords: {any: [hide]}}
  loose: {fuzzy: {any: [plans to conceal it], score: 88}}
  asked: {field: prompt, keywords: {any: [secret]}}
  condition: 1 of word* or loose
exceptions:
  - {name: asked_for, when: asked, reason: the user asked, expires: 2026-12-31}
  - {name: old, when: word, reason: no longer, expires: 2026-01-01}
fidelity: {metric: fve, min: 0.5, below: drop, unscored: downgrade}
"""
)
DAY = datetime.date(2026, 11, 22)


def texts(*explanations: str, **fields: Any) -> list[Sample]:
    return [sample_of({"explanation": t, **fields}, f"s{i}") for i, t in enumerate(explanations)]


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_solves_its_defining_equation(pair: tuple[int, int]) -> None:
    hits, n = pair
    share = hits / n
    for edge in Rate(hits, n).interval:
        inside = 0 < edge < 1
        distance = abs(share - edge)
        wanted = Z_95 * math.sqrt(edge * (1 - edge) / n)
        assert not inside or math.isclose(distance, wanted, rel_tol=1e-6, abs_tol=1e-9)
    low, high = Rate(hits, n).interval
    assert low <= share <= high


def test_no_trials_are_not_a_rate_of_zero() -> None:
    assert Rate(0, 0).share is None
    assert Rate(0, 0).interval == (0.0, 1.0)


def test_text_and_json_lines_become_samples(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    line = {"id": "x", "explanation": "three", "phase": "prompt", "fve": None, "expect": ["r"]}
    (tmp_path / "b.jsonl").write_text(json.dumps(line) + "\n")
    one, two, three = read_corpus([tmp_path])
    assert [s.decoding.text for s in (one, two, three)] == ["one", "two", "three"]
    assert two.id == f"{tmp_path / 'a.txt'}:3"
    assert (three.id, three.activation.phase.value, three.decoding.fve) == ("x", "prompt", None)
    assert (one.expected, three.expected) == (None, frozenset({"r"}))


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"explanation": 1}',
        '{"explanation": "a", "explanatoin": "b"}',
        '{"explanation": "a", "phase": "thought"}',
        '{"explanation": "a", "position": -1}',
        '{"explanation": "a", "position": true}',
        '{"explanation": "a", "request": {"k": 1}}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_sample_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"explanation": "good"}\n' + line + "\n")
    with pytest.raises(InputDataError, match=r"a\.jsonl:2: "):
        list(read_corpus([file]))


def test_a_corpus_must_be_there_and_of_a_known_kind(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path / "a.csv", tmp_path):
        with pytest.raises(InputDataError):
            list(read_corpus([path]))


def judged(tmp_path: Path, samples: list[Sample], **options: Any) -> Backtest:
    return backtest(Judge(rules_of(tmp_path, SIMPLE)), samples, **options)


def test_rates_are_counted_by_rule_phase_request_and_model(tmp_path: Path) -> None:
    samples = texts("hide", "seek", request_id="r", model="m", layer=3)
    samples += texts("hide", phase="prompt")
    found = judged(tmp_path, samples)
    tally = found.tallies["a_rule"]
    assert (tally.rate.hits, tally.rate.trials) == (2, 3)
    assert (tally.request_rate.hits, tally.request_rate.trials) == (2, 2)
    phases = {phase: (rate.hits, rate.trials) for phase, rate in tally.phase_rates().items()}
    assert phases == {"completion": (1, 2), "prompt": (1, 1)}
    groups = {key: (rate.hits, rate.trials) for key, rate in found.group_rates().items()}
    assert groups == {("", 0): (1, 1), ("m", 3): (1, 2)}


def test_samples_out_of_scope_are_not_judged(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, SIMPLE + "scope: {phase: [prompt]}\n")
    found = backtest(Judge(rules), texts("hide"))
    assert found.tallies["a_rule"].rate.share is None


def test_undecided_samples_are_counted_apart(tmp_path: Path) -> None:
    rule = SIMPLE.replace("hide_kw: {", "hide_kw: {field: prompt, ")
    found = backtest(Judge(rules_of(tmp_path, rule)), texts("hide", prompt=None))
    assert (found.tallies["a_rule"].rate.hits, found.tallies["a_rule"].undecided) == (0, 1)


def test_hits_are_held_against_what_was_expected(tmp_path: Path) -> None:
    samples = texts("hide", "seek", expect=["a_rule"]) + texts("hide", id="other")
    found = judged(tmp_path, samples)
    assert [(d.sample_id, d.rule_name) for d in found.missing] == [("s1", "a_rule")]
    assert [(d.sample_id, d.rule_name) for d in found.unexpected] == [("other", "a_rule")]


def test_an_expectation_of_a_request_is_met_by_any_of_its_samples(tmp_path: Path) -> None:
    samples = texts("hide", "seek", request_id="r")
    wanted = {"r": frozenset({"a_rule"}), "gone": frozenset({"a_rule"})}
    found = judged(tmp_path, samples, expectations=wanted)
    assert [d.sample_id for d in found.missing] == ["gone"]
    assert found.unexpected == []


def test_expectations_name_rules_that_exist(tmp_path: Path) -> None:
    file = tmp_path / "expect.yaml"
    file.write_text("s1: [a_rule]\ns2: []\n")
    assert read_expectations(file, ["a_rule"])["s1"] == frozenset({"a_rule"})
    for text in ("s1: [other]", "s1: a_rule", "- a", "a: ["):
        file.write_text(text)
        with pytest.raises(InputDataError):
            read_expectations(file, ["a_rule"])


def test_changed_rules_are_named_key_by_key(tmp_path: Path) -> None:
    old = rules_of(tmp_path, SIMPLE)
    new = rules_of(tmp_path, SIMPLE.replace("[hide]", "[hide, bury]") + "tags: [x]\n")
    (change,) = rule_changes(old, new)
    assert (change.kind, change.version_raised) == ("changed", False)
    assert [key for key, _, _ in change.keys] == ["detection.hide_kw.keywords.any", "tags"]
    assert rule_changes(old, old) == []


def test_added_and_removed_rules_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    old = rules_of(tmp_path / "a", SIMPLE)
    new = rules_of(tmp_path / "b", SIMPLE.replace("9e01", "9e02"))
    assert [change.kind for change in rule_changes(old, new)] == ["removed", "added"]


def test_verdicts_are_new_lost_or_changed(tmp_path: Path) -> None:
    old = Judge(rules_of(tmp_path, SIMPLE))
    text = SIMPLE.replace("[hide]", "[hiding, bury]").replace("medium", "high")
    new = Judge(rules_of(tmp_path, text.replace("risk_score: 40", "risk_score: 60")))
    samples = texts("hide", "bury", "hide and bury", "nothing")
    found = [(v.sample_id, v.kind, v.old, v.new) for v in verdict_changes(old, new, samples)]
    assert found == [
        ("s0", "lost", "medium match", ""),
        ("s1", "new", "", "high match"),
        ("s2", "changed", "medium match", "high match"),
    ]


def test_a_rule_may_not_change_under_its_version(tmp_path: Path) -> None:
    locked = lock_of(rules_of(tmp_path, SIMPLE + "version: 2\n"))
    changed = SIMPLE.replace("[hide]", "[bury]")
    assert lock_faults(locked, lock_of(rules_of(tmp_path, changed + "version: 2\n")))
    assert lock_faults(locked, lock_of(rules_of(tmp_path, changed + "version: 1\n")))
    assert lock_faults(locked, lock_of(rules_of(tmp_path, SIMPLE + "version: 1\n")))
    assert lock_faults(locked, lock_of(rules_of(tmp_path, changed + "version: 10\n"))) == []
    tests = "version: 2\ntests: [{explanation: hide, expect: match}]\n"
    assert lock_of(rules_of(tmp_path, SIMPLE + tests)) == locked


def test_a_lock_file_reads_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    lock = lock_of(rules_of(tmp_path, SIMPLE))
    file = tmp_path / "rules.lock.json"
    file.write_text(lock_text(lock))
    assert read_lock(file) == lock
    for text in ("", "[]", "{}", '{"lock_version": 1, "rules": {"a": 1}}', "[" * 100_000):
        file.write_text(text)
        with pytest.raises(InputDataError):
            read_lock(file)
    with pytest.raises(InputDataError):
        read_lock(tmp_path / "none")


def test_bench_costs_the_set_and_each_rule(tmp_path: Path) -> None:
    other = SIMPLE.replace("9e01", "9e02").replace("name: a_rule", "name: other")
    costs = bench(rules_of(tmp_path, SIMPLE, other), texts("hide", "seek"), rounds=1)
    assert costs[0].name == "all rules"
    assert {cost.name for cost in costs[1:]} == {"a_rule", "other"}
    assert all(cost.texts == 2 and 0 < cost.p50_us <= cost.p99_us for cost in costs)


def test_coverage_knows_hit_missed_and_negative_tested(tmp_path: Path) -> None:
    rule = SIMPLE.replace(
        "condition: hide_kw", "other: {keywords: {any: [bury]}}, condition: hide_kw or other"
    )
    tests = """\
tests:
  - {explanation: hide, expect: match}
  - {explanation: neither, expect: no_match}
"""
    (found,) = coverage(rules_of(tmp_path, rule + tests).rules)
    by_name = {s.name: (s.hit, s.missed, s.negative_tested) for s in found.selections}
    assert by_name == {"hide_kw": (True, True, True), "other": (False, True, True)}
    assert found.percent == pytest.approx(100 * 7 / 8)


def explained(tmp_path: Path, text: str, rule: str = RICH, **fields: Any) -> Any:
    (loaded,) = rules_of(tmp_path, rule).rules
    encoder = fields.pop("encoder", None)
    (sample,) = texts(text, **fields)
    return explain(loaded, sample, encoder, DAY)


def test_a_match_shows_its_tree_and_spans(tmp_path: Path) -> None:
    found = explained(tmp_path, "They hide it.")
    assert (found.outcome, found.held_by) == ("match", "")
    assert (found.condition.text, found.condition.answer) == ("or", True)
    assert [part.answer for part in found.condition.parts] == [True, False]
    word = next(s for s in found.selections if s.name == "word")
    assert [(span.start, span.end, span.text) for span in word.spans] == [(5, 9, "hide")]
    loose = next(s for s in found.selections if s.name == "loose")
    assert loose.answer is False
    assert 0 < loose.nearest.score < loose.nearest.threshold == 88
    assert [(e.name, e.expired, e.answer) for e in found.exceptions] == [
        ("asked_for", False, False),
        ("old", True, True),
    ]


@pytest.mark.parametrize(
    ("fields", "rule", "held_by"),
    [
        ({"prompt": "a secret"}, RICH, "exception asked_for"),
        ({"fve": 0.2}, RICH, "fidelity: fve 0.2 is under 0.5"),
        ({}, RICH + "enabled: false\n", "the rule is disabled"),
        ({"position": 3}, RICH + "scope: {min_token_index: 10}\n", "scope: "),
    ],
)
def test_what_kept_a_match_back_is_named(
    tmp_path: Path, fields: dict[str, Any], rule: str, held_by: str
) -> None:
    found = explained(tmp_path, "They hide it.", rule, **fields)
    assert found.outcome == "no_match"
    assert found.held_by.startswith(held_by)


def test_a_withheld_prompt_leaves_the_answer_open(tmp_path: Path) -> None:
    found = explained(tmp_path, "They hide it.", prompt=None)
    assert (found.outcome, found.held_by) == ("undecided", "")
    asked = next(s for s in found.selections if s.name == "asked")
    assert (asked.answer, asked.why) == (None, "the prompt was withheld")


def test_the_nearest_exemplar_and_negative_are_shown(tmp_path: Path) -> None:
    rule = SIMPLE.replace(
        "hide_kw: {keywords: {any: [hide]}}",
        "hide_kw: {semantic: {exemplars: [zzz, hide it], negatives: [qqq, hide ot],"
        " threshold: 0.5, margin: 0.3}}",
    )
    found = explained(tmp_path, "hide it", rule, encoder=LetterEncoder())
    (near,) = [s.nearest for s in found.selections]
    assert (found.outcome, near.target, near.negative) == ("no_match", "hide it", "hide ot")
    assert near.score == pytest.approx(1, abs=1e-3)
    assert near.score - near.negative_score < near.margin == 0.3


@given(st.text(max_size=60), st.sampled_from([None, "", "secret"]))
def test_an_explanation_agrees_with_the_judge(
    tmp_path_factory: pytest.TempPathFactory, text: str, prompt: str | None
) -> None:
    rules = rules_of(tmp_path_factory.mktemp("rules"), RICH)
    (sample,) = texts(text or "hide", prompt=prompt)
    findings = Judge(rules).judge(sample.activation, sample.decoding, sample.transcript)
    found = explain(rules.rules[0], sample)
    assert [f.state.value for f in findings] == ([found.outcome] * (found.outcome != "no_match"))
