"""What a backtest says of packs, of requests, and of severities after the fidelity gate."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from detect_support import HEADER, rules_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nae_monitor.detect import Judge, RuleSet, load_rules
from nae_monitor.detect.tools.backtest import Backtest, backtest
from nae_monitor.detect.tools.corpus import Sample, sample_of
from nae_monitor.detect.tools.journal import Journal
from nae_monitor.records import FindingState, Severity

GATE = "fidelity: {metric: fve, min: 0.5, below: downgrade, unscored: drop}\n"
TWICE = "aggregation: {type: event_count, rules: [b], window: {tokens: 99}, condition: {gte: 2}}\n"


def rule(name: str, word: str, severity: str, more: str = "") -> str:
    body = f"detection: {{kw: {{keywords: {{any: [{word}]}}}}, condition: kw}}\n"
    return header(name, severity) + (more if more.startswith("aggregation") else body + more)


def header(name: str, severity: str) -> str:
    text = HEADER.replace("9e01", f"9e{ord(name[0]):02x}").replace("a_rule", name)
    return text.replace("risk_score: 40\n", "").replace("medium", severity)


RULES = {
    "one/a.yaml": rule("a", "alpha", "medium", GATE),
    "one/b.yaml": rule("b", "beta", "informational"),
    "one/c.yaml": rule("c", "gamma", "low", GATE),
    "two/d.yaml": rule("d", "delta", "high", "scope: {phase: [prompt]}\n"),
    "two/e.yaml": rule("e", "", "high", TWICE),
    "two/f.yaml": rule("f", "phi", "low").replace("kw: {", "kw: {field: output, "),
}


def packs(tmp_path: Path) -> RuleSet:
    for name, text in RULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return load_rules([tmp_path])


def row(n: int, text: str, request_id: str = "r", **fields: Any) -> Sample:
    value = {"request_id": request_id, "position": n, "explanation": text, **fields}
    return sample_of(value, f"{request_id}:{n}")


def pair(rate: Any) -> tuple[int, int]:
    return rate.hits, rate.trials


def test_a_pack_counts_a_sample_and_a_request_once_whatever_matched(tmp_path: Path) -> None:
    samples = [row(1, "alpha beta gamma"), row(2, "alpha"), row(3, "no"), row(1, "no", "s")]
    one, two = backtest(Judge(packs(tmp_path)), samples).packs
    assert (one.name, two.name) == ("one", "two")
    assert pair(one.rate("alerting")) == (2, 4)
    assert pair(one.request_rate("alerting")) == (1, 2)
    assert pair(one.rate("informational")) == (1, 4)
    assert pair(two.rate("alerting")) == (0, 4)


def test_a_request_that_only_an_aggregation_finds_counts_for_its_pack(tmp_path: Path) -> None:
    found = backtest(Judge(packs(tmp_path)), [row(1, "beta"), row(2, "beta"), row(1, "beta", "s")])
    one, two = found.packs
    assert pair(one.request_rate("alerting")) == (0, 2)
    assert pair(two.request_rate("alerting")) == (1, 2)
    assert pair(two.rate("alerting")) == (0, 3)
    assert pair(found.together.request_rate("alerting")) == (1, 2)


def test_what_no_rule_alerts_on_and_one_could_not_decide_is_undecided(tmp_path: Path) -> None:
    samples = [row(1, "no", output=None), row(1, "no", "s", output=None), row(2, "delta", "s")]
    samples.append(row(3, "delta", "s", phase="prompt"))
    found = backtest(Judge(packs(tmp_path)), samples)
    assert pair(found.packs[1].rate("undecided")) == (2, 4)
    assert pair(found.packs[1].request_rate("undecided")) == (1, 2)
    assert pair(found.packs[0].rate("undecided")) == (0, 4)


def test_matches_count_at_the_severity_after_the_gate(tmp_path: Path) -> None:
    figures = (0.9, 0.1, None)
    samples = [row(n, "alpha gamma", f"r{n}", fve=fve) for n, fve in enumerate(figures)]
    tallies = backtest(Judge(packs(tmp_path)), samples).tallies
    assert tallies["a"].severities == {Severity.MEDIUM: 1, Severity.LOW: 1}
    assert tallies["a"].gated == {"downgraded": 1, "dropped": 1}
    assert tallies["c"].severities == {Severity.LOW: 1, Severity.INFORMATIONAL: 1}
    assert pair(tallies["c"].rate) == (2, 3)
    assert pair(tallies["c"].alerting_rate) == (1, 3)
    assert pair(tallies["c"].alerting_request_rate) == (1, 3)


def test_tags_of_low_fidelity_are_counted(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, rule("a", "alpha", "low", GATE.replace("downgrade", "tag")))
    tally = backtest(Judge(rules), [row(1, "alpha", fve=0.1), row(2, "alpha")]).tallies["a"]
    assert (tally.gated, tally.severities) == ({"tagged": 1}, {Severity.LOW: 2})


def test_packs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for place, name in (("x/one", "a"), ("y/one", "b")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "r.yaml").write_text(rule(name, "alpha", "low"))
    found = backtest(Judge(load_rules([tmp_path])), [])
    assert [p.name for p in found.packs] == [str(tmp_path / "x/one"), str(tmp_path / "y/one")]


def test_an_interrupted_run_keeps_severities_and_gates(tmp_path: Path) -> None:
    rules = packs(tmp_path)
    samples = [row(n, "alpha beta gamma", f"r{n % 3}", fve=n / 20) for n in range(20)]
    with Journal(tmp_path / "journal", {}) as journal:
        whole = backtest(Judge(rules), samples, journal=journal)
    with Journal(tmp_path / "journal", {}) as journal:
        again = backtest(Judge(rules), samples, journal=journal)
        assert journal.recalled == len(samples)
    assert again == whole


def alerting_oracle(rules: RuleSet, samples: list[Sample]) -> dict[str, set[str]]:
    """By rule, the requests with a match above informational, straight from the judge."""
    judge, found = Judge(rules), defaultdict[str, set[str]](set)
    for sample in samples:
        for one in judge.judge(sample.activation, sample.decoding, sample.transcript):
            if one.state is FindingState.MATCH and one.severity is not Severity.INFORMATIONAL:
                found[one.rule_name].add(one.request_id)
    return found


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sets(st.sampled_from(["alpha", "beta", "gamma", "delta"])),
            st.sampled_from("rst"),
            st.sampled_from(["prompt", "completion"]),
            st.one_of(st.none(), st.floats(-1, 1)),
        ),
        max_size=12,
    )
)
def test_requests_that_alert_are_those_the_judge_alerts_on(
    tmp_path: Path, rows: list[tuple[set[str], str, str, float | None]]
) -> None:
    samples = [
        row(n, " ".join(sorted(words)) or "no", request, phase=phase, fve=fve)
        for n, (words, request, phase, fve) in enumerate(rows)
    ]
    rules = packs(tmp_path)
    found: Backtest = backtest(Judge(rules), samples)
    oracle = alerting_oracle(rules, samples)
    for name in "abcdf":
        assert found.tallies[name].requests_alerting == oracle[name]
    assert found.packs[0].requests_hit["alerting"] == oracle["a"] | oracle["b"] | oracle["c"]
    by_window = found.tallies["e"].requests_alerting
    assert found.packs[1].requests_hit["alerting"] == oracle["d"] | oracle["f"] | by_window
