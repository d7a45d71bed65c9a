"""``rules`` explain, backtest, diff, bench, lock, fmt and schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.fixture
def hide(rule: Path) -> Path:
    """A rule that looks for one word."""
    rule.write_text(rule.read_text().replace("regex: ['.']", "regex: ['hide']"))
    return rule


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    lines = [
        {"id": "a", "explanation": "they hide", "expect": ["anything"]},
        {"id": "b", "explanation": "they seek", "phase": "prompt"},
        {"id": "c", "explanation": "hide\u001b[31m"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def explain(cli: Cli, rule: Path, text: str, *more: str | Path) -> Any:
    return cli("rules", "explain", "anything", "--rules", rule, "--text", text, *more)


def test_explain_shows_a_match_with_its_place(cli: Cli, hide: Path) -> None:
    done = explain(cli, hide, "they hide it")
    assert done.code == 0
    assert done.out.startswith("anything (version 1): MATCH, severity low")
    assert "PASS any_text: regex in explanation" in done.out
    assert "explanation 5-9: hide" in done.out


def test_explain_of_no_match_exits_with_one(cli: Cli, hide: Path) -> None:
    done = explain(cli, hide, "they seek")
    assert done.code == 1
    assert "FAIL any_text" in done.out


def test_explain_as_json_has_offsets_and_answers(cli: Cli, hide: Path) -> None:
    (found,) = explain(cli, hide, "they hide it", "--json", "--fve", "0.4").objects
    assert found["outcome"] == "match"
    assert found["condition"] == {"text": "any_text", "answer": "pass"}
    (span,) = found["selections"][0]["spans"]
    assert (span["start"], span["end"]) == (5, 9)
    assert found["fidelity"]["figure"] == 0.4


def test_explain_takes_a_row_of_a_recording(
    cli: Cli, rule: Path, hide: Path, recording: Path
) -> None:
    rule.write_text(rule.read_text().replace("regex: ['hide']", "regex: ['.']"))
    (found,) = explain(cli, rule, f"@{recording}", "--json").objects
    assert found["outcome"] == "match"
    (same,) = explain(cli, rule, f"@{recording}#{found['sample']}", "--json").objects
    assert same == found
    assert explain(cli, rule, f"@{recording}#none:1").code == 3
    assert explain(cli, rule, f"@{recording.parent / 'nowhere'}").code == 3


def test_explain_hints_at_the_nearest_rule(cli: Cli, hide: Path) -> None:
    done = cli("rules", "explain", "anythin", "--rules", hide, "--text", "x")
    assert done.code == 2
    assert "did you mean 'anything'?" in done.err


def test_control_characters_of_a_text_never_reach_the_terminal(
    cli: Cli, hide: Path, corpus: Path
) -> None:
    shown = explain(cli, hide, "they hide \x1b[31m it").out
    shown += cli("rules", "backtest", hide, "--corpus", corpus).out
    assert "\x1b" not in shown


def test_backtest_prints_rates_and_exits_by_expectation(cli: Cli, hide: Path, corpus: Path) -> None:
    done = cli("rules", "backtest", hide, "--corpus", corpus)
    assert done.code == 0
    assert "3 samples" in done.out
    assert "1 unexpected:" in done.out
    failing = cli("rules", "backtest", hide, "--corpus", corpus, "--unexpected", "fail")
    assert failing.code == 1


def test_backtest_takes_expectations_from_a_file(
    cli: Cli, hide: Path, corpus: Path, tmp_path: Path
) -> None:
    expected = tmp_path / "expected.yaml"
    expected.write_text("a: [anything]\nb: []\nc: [anything]\n")
    arguments = ("--corpus", corpus, "--expect", expected, "--unexpected", "fail", "--json")
    done = cli("rules", "backtest", hide, *arguments)
    assert done.code == 0, done.out
    (tally,) = done.objects[0]["rules"]
    assert (tally["samples"]["hits"], tally["samples"]["of"]) == (2, 3)
    assert tally["phases"]["prompt"]["hits"] == 0
    expected.write_text("b: [anything]\n")
    assert cli("rules", "backtest", hide, *arguments[:4]).code == 1


def test_backtest_of_a_recording_counts_its_requests(cli: Cli, rule: Path, recording: Path) -> None:
    (found,) = cli("rules", "backtest", rule, "--corpus", recording, "--json").objects
    (tally,) = found["rules"]
    assert tally["requests"]["of"] == 2
    assert tally["samples"]["of"] == found["samples"] > 2
    shown = cli("rules", "backtest", rule, "--corpus", recording).out
    assert any(line.split()[:2] == ["requests", "2"] for line in shown.splitlines())


def test_bad_corpora_exit_with_three_and_none_with_two(
    cli: Cli, hide: Path, tmp_path: Path
) -> None:
    assert cli("rules", "backtest", hide).code == 2
    assert cli("rules", "backtest", hide, "--corpus", tmp_path / "none.txt").code == 3
    (tmp_path / "bad.jsonl").write_text("{")
    assert cli("rules", "backtest", hide, "--corpus", tmp_path / "bad.jsonl").code == 3


def test_diff_names_keys_and_verdicts(cli: Cli, hide: Path, corpus: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.yaml"
    new.write_text(hide.read_text().replace("'hide'", "'seek'").replace("2026-01-01", "2026-01-02"))
    done = cli("rules", "diff", hide, new, "--corpus", corpus)
    assert done.code == 1
    assert "changed: anything (under the same version)" in done.out
    assert "verdicts: 1 new, 2 lost, 0 changed" in done.out
    (found,) = cli("rules", "diff", hide, new, "--json").objects
    assert {key["key"] for key in found["rules"][0]["keys"]} == {
        "date",
        "detection.any_text.regex",
    }
    assert found["verdicts"] is None
    assert cli("rules", "diff", hide, hide, "--corpus", corpus).code == 0


def test_bench_fails_over_its_budget_only(cli: Cli, hide: Path) -> None:
    quick = ("--texts", "3", "--rounds", "1", "--json")
    (found,) = cli("rules", "bench", hide, *quick).objects
    assert [cost["name"] for cost in found["costs"]] == ["all rules", "anything"]
    over = cli("rules", "bench", hide, *quick, "--budget-us", "0")
    assert over.code == 1
    assert over.objects[0]["over_budget"] == ["anything"]
    assert cli("rules", "bench", hide, *quick, "--set-budget-us", "1e9").code == 0


def test_lock_refuses_a_change_under_the_same_version(cli: Cli, hide: Path, tmp_path: Path) -> None:
    lock = ("--file", tmp_path / "lock.json")
    assert cli("rules", "lock", hide, *lock, "--check").code == 3
    assert cli("rules", "lock", hide, *lock).code == 0
    assert cli("rules", "lock", hide, *lock, "--check").code == 0
    hide.write_text(hide.read_text().replace("'hide'", "'seek'"))
    refused = cli("rules", "lock", hide, *lock)
    assert refused.code == 1
    assert "changed, and its version is 1 after 1" in refused.err
    hide.write_text(hide.read_text().replace("version: 1\nstatus", "version: 2\nstatus"))
    assert "out of date" in cli("rules", "lock", hide, *lock, "--check").err
    assert cli("rules", "lock", hide, *lock).code == 0
    assert cli("rules", "lock", hide, *lock, "--check").code == 0


def test_fmt_moves_keys_and_check_only_tells(cli: Cli, hide: Path) -> None:
    good = hide.read_text().lstrip()
    hide.write_text(good)
    assert cli("rules", "fmt", hide, "--check").code == 0
    title = "title: Anything at all\n"
    hide.write_text(good.replace(title, "") + title)
    checked = cli("rules", "fmt", hide, "--check")
    assert checked.code == 1
    assert f"would change: {hide}" in checked.out
    assert cli("rules", "fmt", hide).code == 0
    assert hide.read_text() == good


def test_fmt_of_what_is_not_yaml_exits_with_two(cli: Cli, hide: Path) -> None:
    hide.write_text("a: [")
    assert cli("rules", "fmt", hide).code == 2


def test_schema_is_json(cli: Cli) -> None:
    assert "json-schema.org" in json.loads(cli("rules", "schema").out)["$schema"]


VERBS = ("lint", "fmt", "test", "explain", "backtest", "diff", "tune", "coverage", "bench")


@pytest.mark.parametrize("verb", [*VERBS, "lock", "schema"])
def test_every_verb_has_help(cli: Cli, verb: str) -> None:
    assert cli("rules", verb, "--help").code == 0


def test_backtest_prints_rates_a_decode_and_a_request_for_each_pack(
    cli: Cli, hide: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    lines = [{"explanation": text, "request_id": "r"} for text in ("they hide", "I hide", "no")]
    lines.append({"explanation": "no", "request_id": "s"})
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = cli("rules", "backtest", hide, "--corpus", corpus)
    assert "4 samples of 2 requests" in done.out
    block = done.out[done.out.index("pack ") :].splitlines()[1:3]
    pack = hide.resolve().parent.name
    assert block[0].split()[:5] == [pack, "samples", "4", "2", "500"]
    assert block[1].split()[:4] == ["requests", "2", "1", "500"]
    (found,) = cli("rules", "backtest", hide, "--corpus", corpus, "--json").objects
    (of_pack,) = found["packs"]
    assert of_pack["pack"] == pack
    assert of_pack["alerting"]["samples"]["hits"] == 2
    assert of_pack["alerting"]["requests"]["interval_95"] == [94.531, 905.469]
    assert of_pack["informational"]["requests"]["hits"] == 0
    assert found["rules"][0]["alerting_requests"]["per_1k"] == 500


def test_backtest_keeps_informational_rules_apart(cli: Cli, hide: Path, corpus: Path) -> None:
    hide.write_text(hide.read_text().replace("severity: low", "severity: informational"))
    done = cli("rules", "backtest", hide, "--corpus", corpus)
    assert done.out.startswith("informational rule")
    (found,) = cli("rules", "backtest", hide, "--corpus", corpus, "--json").objects
    assert found["all_packs"]["alerting"]["samples"]["hits"] == 0
    assert found["all_packs"]["informational"]["samples"]["hits"] == 2
