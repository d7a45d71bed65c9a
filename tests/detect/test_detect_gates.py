"""The fidelity gate: percentiles of a calibration set, and the support of what matched."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detect_support import SIMPLE, activation, decoding, rules_of, transcript
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.detect import (
    Calibration,
    Judge,
    LiveRules,
    read_calibration,
    run_inline_tests,
    write_calibration,
)
from nae_monitor.detect.evaluation import LOW_FIDELITY_TAG, rate
from nae_monitor.detect.support import support_of, without_sentences
from nae_monitor.errors import ConfigurationError, RuleError
from nae_monitor.health import Health
from nae_monitor.recording.findings import finding_from_json, finding_to_json
from nae_monitor.records import Finding, Severity, Span

HUNDRED = Calibration.of("nla", [number / 100 for number in range(1, 101)])


class WordReconstructor:
    """A reconstructor small enough to follow: the cosine is the share of the words it knows."""

    def __init__(self, words: str = "hide the key from user") -> None:
        self.words = set(words.split())
        self.seen: list[list[str]] = []

    def cosines(self, vector: torch.Tensor, texts: Sequence[str]) -> list[float | None]:
        self.seen.append(list(texts))
        found = [
            self.words & set(text.replace(";", " ").replace(".", " ").split()) for text in texts
        ]
        return [len(words) / len(self.words) for words in found]


class Failing:
    def cosines(self, vector: torch.Tensor, texts: Sequence[str]) -> list[float | None]:
        raise RuntimeError("no memory")


def gated(gate: str) -> str:
    return SIMPLE + f"fidelity: {gate}\n"


def judged(rules, text: str, fve: float | None = 0.6, **more: object) -> list[Finding]:  # type: ignore[no-untyped-def]
    judge = Judge(rules, **more)  # type: ignore[arg-type]
    return list(judge.judge(activation(), decoding(text, fve=fve), transcript()))


@given(st.lists(st.floats(-5, 1), min_size=20, max_size=60), st.floats(-6, 2))
def test_a_percentile_is_the_share_of_the_set_that_is_no_better(
    values: list[float], figure: float
) -> None:
    found = Calibration.of("nla", values).percentile(decoding("x", fve=figure))
    counted = 100 * sum(value <= figure for value in values) / len(values)
    assert found == pytest.approx(counted, abs=1e-4)


@pytest.mark.parametrize("figure", [None, math.nan])
def test_an_unscored_decode_has_no_percentile(figure: float | None) -> None:
    assert HUNDRED.percentile(decoding("x", fve=figure)) is None


def test_another_pairs_decode_has_no_percentile() -> None:
    assert Calibration.of("other", HUNDRED.values).percentile(decoding("x")) is None


def test_a_calibration_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_calibration(tmp_path / "c.json", HUNDRED)
    found = read_calibration(tmp_path / "c.json")
    assert (found.nla_id, found.metric, found.values) == ("nla", "fve", HUNDRED.values)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[" * 100_000,
        "[]",
        json.dumps({"nla_id": "a", "metric": "fve"}),
        json.dumps({"nla_id": "a", "metric": "fve", "values": [0.5] * 19}),
        json.dumps({"nla_id": "a", "metric": "l2", "values": [0.5] * 20}),
        json.dumps({"nla_id": "a", "metric": "fve", "values": [True] * 20}),
        json.dumps({"nla_id": "a", "metric": "fve", "values": [math.nan] * 20}),
        json.dumps({"nla_id": "a", "metric": "fve", "values": [10**400] * 20}),
        json.dumps({"nla_id": "a", "metric": ["fve"], "values": [1] * 20}),
        "\udcff",
    ],
)
def test_what_is_no_calibration_set_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError, match=r"c\.json"):
        read_calibration(tmp_path / "c.json")


def test_a_named_pipe_is_refused_as_a_calibration_set_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.json")
    with pytest.raises(ConfigurationError, match="Not a regular file"):
        read_calibration(tmp_path / "c.json")


def test_a_calibration_set_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        read_calibration(tmp_path / "c.json")


def test_a_percentile_gate_drops_the_worst_decodes_of_its_pair(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, gated("{metric: percentile, min: 10, below: drop, unscored: pass}"))
    assert judged(rules, "they hide it", 0.09, calibration=HUNDRED) == []
    assert len(judged(rules, "they hide it", 0.10, calibration=HUNDRED)) == 1


def test_a_percentile_gate_without_a_calibration_set_is_unscored(tmp_path: Path) -> None:
    rules = rules_of(
        tmp_path, gated("{metric: percentile, min: 10, below: drop, unscored: downgrade}")
    )
    (finding,) = judged(rules, "they hide it", 0.9)
    assert finding.severity is Severity.LOW


@pytest.mark.parametrize(
    "gate",
    [
        "{metric: percentile, min: 101}",
        "{metric: percentile, min: -1}",
        "{metric: fve, min: 5}",
        "{metric: rank, min: 0}",
        "{min: 0.5, min_support: -0.1}",
        "{min: 0.5, min_support: .nan}",
    ],
)
def test_a_gate_out_of_its_metrics_range_is_refused(tmp_path: Path, gate: str) -> None:
    with pytest.raises(RuleError):
        rules_of(tmp_path, gated(gate))


def span(start: int, end: int, field: str = "explanation") -> Span:
    return Span("s", field, start, end, "")


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        ("One here. They hide it. Two there.", [span(15, 19)], "One here. Two there."),
        ('at "a"; expects "b|c"; kind reply: they hide', [span(38, 42)], 'at "a"; expects "b|c"; '),
        ("all of it hides", [span(10, 15, "explanation.final")], ""),
        ("a text", [span(0, 1, "prompt")], None),
        ("a text", [span(0, 0)], None),
        ("a text", [], None),
    ],
)
def test_the_sentences_that_matched_are_taken_out(
    text: str, spans: list[Span], expected: str | None
) -> None:
    assert without_sentences(text, spans) == expected


@given(
    st.text(alphabet='ab .;\n"é', max_size=60),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=4),
)
def test_no_matched_character_is_left_and_the_rest_keeps_its_order(
    text: str, edges: list[tuple[int, int]]
) -> None:
    inside = [(min(a, b, len(text)), min(max(a, b), len(text))) for a, b in edges]
    numbered = "".join(chr(0x4E00 + i) if c in "ab" else c for i, c in enumerate(text))
    rest = without_sentences(numbered, [span(a, b) for a, b in inside])
    if rest is None:
        assert not any(a < b for a, b in inside)
        return
    kept = iter(numbered)
    assert all(character in kept for character in rest)
    for start, end in inside:
        assert not {c for c in numbered[start:end] if c >= "\u4e00"} & set(rest)


def test_support_is_the_cosine_that_the_matched_sentences_add() -> None:
    reconstructor = WordReconstructor()
    text = "they hide the key; a user waits."
    found = support_of(reconstructor, torch.ones(4), text, [span(5, 9)])
    assert reconstructor.seen == [[text, "a user waits."]]
    assert found == pytest.approx(4 / 5 - 1 / 5)


@pytest.mark.parametrize(("bound", "tags", "count"), [(0.6, (), 1), (0.61, (LOW_FIDELITY_TAG,), 1)])
def test_a_match_on_words_that_carry_nothing_is_told_apart(
    tmp_path: Path, bound: float, tags: tuple[str, ...], count: int
) -> None:
    rules = rules_of(tmp_path, gated(f"{{min: 0.5, below: tag, min_support: {bound}}}"))
    (finding,) = judged(
        rules, "they hide the key; a user waits.", reconstructor=WordReconstructor()
    )
    assert (finding.tags, finding.support, finding.support_asked) == (tags, 0.6, True)


def test_the_reconstructor_is_asked_only_for_a_match_that_is_not_dropped_already(
    tmp_path: Path,
) -> None:
    rules = rules_of(tmp_path, gated("{min: 0.5, below: drop, min_support: 0.1}"))
    reconstructor = WordReconstructor()
    assert judged(rules, "nothing here", reconstructor=reconstructor) == []
    assert judged(rules, "they hide it", 0.4, reconstructor=reconstructor) == []
    assert reconstructor.seen == []


@pytest.mark.parametrize("reconstructor", [None, Failing()])
def test_support_that_cannot_be_measured_is_unscored_and_never_enough(
    tmp_path: Path, reconstructor: object
) -> None:
    rules = rules_of(
        tmp_path, gated("{min: 0.5, below: drop, unscored: downgrade, min_support: 0.1}")
    )
    health = Health()
    (finding,) = judged(rules, "they hide it", health=health, reconstructor=reconstructor)
    assert (finding.severity, finding.support, finding.support_asked) == (Severity.LOW, None, True)
    assert health.counters()["rules.support_asked"] == 1
    failed = sum(n for name, n in health.counters().items() if "detect.support" in name)
    assert (failed > 0) is (reconstructor is not None)


def test_support_is_neither_asked_for_nor_unknown_where_the_gate_has_no_bound_on_it(
    tmp_path: Path,
) -> None:
    health = Health()
    (finding,) = judged(
        rules_of(tmp_path, gated("{min: 0.5}")),
        "they hide it",
        health=health,
        reconstructor=WordReconstructor(),
    )
    assert (finding.support, finding.support_asked, finding.support_s) == (None, False, None)
    assert "rules.support_asked" not in health.counters()


def test_what_measuring_support_took_is_counted_and_changes_no_finding(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, gated("{min: 0.5, below: tag, min_support: 0.1}"))
    health = Health()
    (one,), (two,) = (
        judged(rules, "they hide it", health=health, reconstructor=WordReconstructor())
        for _ in range(2)
    )
    assert one == two
    assert one.support_s is not None
    assert one.support_s > 0
    assert health.counters()["rules.support_microseconds"] > 0


def test_a_drop_for_low_support_is_counted_under_its_name(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, gated("{min: 0.5, below: drop, min_support: 0.9}"))
    health = Health()
    assert judged(rules, "they hide it", health=health, reconstructor=WordReconstructor()) == []
    assert health.counters()["rules.dropped_low_support"] == 1


def test_of_two_faults_of_a_decode_the_graver_decides_once(tmp_path: Path) -> None:
    (rule,) = rules_of(
        tmp_path, gated("{min: 0.5, below: tag, unscored: downgrade, min_support: 0.1}")
    ).rules
    assert rate(rule, 0.4, None).severity is Severity.LOW
    assert rate(rule, None, None).severity is Severity.LOW
    assert rate(rule, 0.4, 0.2).tags == (LOW_FIDELITY_TAG,)
    assert rate(rule, 0.6, 0.2) == rate(rule, 0.6)


def test_rules_that_are_read_again_keep_the_calibration_and_the_reconstructor(
    tmp_path: Path,
) -> None:
    gate = "{metric: percentile, min: 10, below: drop, unscored: pass, min_support: 0.1}"
    (tmp_path / "rule.yaml").write_text(gated(gate))
    live = LiveRules([tmp_path], calibration=HUNDRED, reconstructor=WordReconstructor())
    (tmp_path / "rule.yaml").write_text(gated(gate.replace("10", "20")))
    assert live.poll()
    row = activation(), decoding("they hide it", fve=0.5), transcript()
    assert [finding.support for finding in live.judge(*row)] == [0.2]


def test_inline_tests_give_percentile_and_support(tmp_path: Path) -> None:
    text = gated("{metric: percentile, min: 10, below: drop, unscored: drop, min_support: 0.1}") + (
        "tests:\n"
        "  - {name: plain, explanation: hide, expect: match}\n"
        "  - {name: worst, explanation: hide, percentile: 9, expect: no_match}\n"
        "  - {name: unknown, explanation: hide, percentile: null, expect: no_match}\n"
        "  - {name: fve says nothing, explanation: hide, fve: -1, expect: match}\n"
        "  - {name: idle words, explanation: hide, support: 0.01, expect: no_match}\n"
        "  - {name: no reconstructor, explanation: hide, support: null, expect: no_match}\n"
    )
    assert [r for r in run_inline_tests(rules_of(tmp_path, text)) if r.outcome != "passed"] == []


def test_the_phase_tool_is_a_scope_of_its_own(tmp_path: Path) -> None:
    (rule,) = rules_of(tmp_path, SIMPLE + "scope: {phase: [tool]}\n").rules
    assert [phase.value for phase in rule.scope.phases] == ["tool"]
    assert not rule.scope.admits(activation())


# -- P(unsupported) of the decode ---------------------------------------------------------------

DOUBTING = "{min: 0.5, below: drop, unscored: downgrade, max_unsupported: 0.4}"


def doubted(tmp_path: Path, support: float | None, health: Health | None = None) -> list[Finding]:
    judge = Judge(rules_of(tmp_path, gated(DOUBTING)), health=health)
    decoded = replace(decoding("they hide it", fve=0.6), support=support, support_decodes=4)
    return list(judge.judge(activation(), decoded, transcript()))


@pytest.mark.parametrize(("support", "kept"), [(0.6, True), (0.5999, False), (1.0, True)])
def test_a_decode_that_is_likelier_unsupported_than_a_rule_allows_is_dropped(
    tmp_path: Path, support: float, kept: bool
) -> None:
    health = Health()
    found = doubted(tmp_path, support, health)
    assert [f.unsupported for f in found] == [round(1 - support, 4)] * kept
    assert health.counters().get("rules.dropped_unsupported", 0) == (not kept)


def test_a_decode_of_unknown_support_is_unscored_and_never_enough(tmp_path: Path) -> None:
    (finding,) = doubted(tmp_path, None)
    assert (finding.severity, finding.unsupported) == (Severity.LOW, None)


def test_a_finding_is_the_same_again_where_what_it_cost_is_not_known(tmp_path: Path) -> None:
    (live,) = doubted(tmp_path, 0.9)
    assert live.unsupported_decodes == 4
    assert finding_from_json(finding_to_json(live), "here") == live


def test_an_example_tells_how_likely_it_is_unsupported(tmp_path: Path) -> None:
    text = gated(DOUBTING) + (
        "tests:\n"
        "  - {explanation: they hide it, expect: match}\n"
        "  - {explanation: they hide it, unsupported: 0.5, expect: no_match}\n"
        "  - {explanation: they hide it, unsupported: null, expect: {match: true, severity: low}}\n"
    )
    assert [r.outcome for r in run_inline_tests(rules_of(tmp_path, text))] == ["passed"] * 3


@pytest.mark.parametrize("bound", ["-0.1", "1.1", ".nan", "much"])
def test_a_probability_that_is_none_is_refused(tmp_path: Path, bound: str) -> None:
    with pytest.raises(RuleError):
        rules_of(tmp_path, gated(f"{{min: 0.5, max_unsupported: {bound}}}"))
