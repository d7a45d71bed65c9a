"""Calibration sets: made by ``nla calibrate``, taken by ``rules``, told of by ``doctor``."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nae_monitor.calibration import calibration_for, warn_of_unknown_percentiles
from nae_monitor.detect import Calibration, load_rules, read_calibration, write_calibration
from nae_monitor.models import resolve_nla
from nae_monitor.models.nla import list_in_checksums, verify_checksums
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV, Settings

Cli = Callable[..., Any]
Config = Callable[..., str]
GATE = "fidelity: {metric: percentile, min: 50, below: drop, unscored: drop}\n"


@pytest.fixture
def gated(rule: Path) -> Path:
    """A rule that matches anything in the better half of decodes."""
    rule.write_text(rule.read_text() + GATE)
    return rule


@pytest.fixture
def scale(tmp_path: Path) -> Path:
    file = tmp_path / "scale.json"
    write_calibration(file, Calibration.of("pair", [n / 100 for n in range(100)]))
    return file


def decodes(path: Path, figures: list[float | None], **fields: Any) -> Path:
    lines = [{"explanation": "word", "fve": figure, **fields} for figure in figures]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_set_is_made_of_the_decodes_that_were_scored(cli: Cli, tiny: Any, tmp_path: Path) -> None:
    corpus = decodes(tmp_path / "a.jsonl", [*(n / 50 for n in range(50)), None])
    out = tmp_path / "c.json"
    pair = ("--av", tiny.av, "--ar", tiny.ar)
    done = cli("nla", "calibrate", "--corpus", corpus, *pair, "-o", out)
    assert done.code == 0, done.err
    assert "fve of 50 decodes" in done.out
    assert "1 unscored left out" in done.out
    found = read_calibration(out)
    assert found.values == tuple(n / 50 for n in range(50))
    assert "word" not in out.read_text()
    decodes(corpus, [0.5] * 30, nla_id="another")
    foreign = cli("nla", "calibrate", "--corpus", corpus, *pair, "-o", out)
    assert foreign.code == 3
    assert "is a decode of 'another'" in foreign.err
    few = cli("nla", "calibrate", "--corpus", decodes(corpus, [0.5] * 3), *pair, "-o", out)
    assert few.code == 3
    assert read_calibration(out) is not None


def test_a_file_is_listed_once_in_its_directorys_checksums(tmp_path: Path) -> None:
    for content in ("one", "two"):
        (tmp_path / "set.json").write_text(content)
        list_in_checksums(tmp_path / "set.json")
        assert not (tmp_path / "SHA256SUMS").exists()
    (tmp_path / "SHA256SUMS").write_text("")
    for content in ("one", "two"):
        (tmp_path / "set.json").write_text(content)
        list_in_checksums(tmp_path / "set.json")
        verify_checksums(tmp_path)
    assert len((tmp_path / "SHA256SUMS").read_text().splitlines()) == 1


def test_the_embedded_pair_ships_a_set_of_its_own() -> None:
    found = read_calibration(resolve_nla(EMBEDDED_AR) / "calibration.json")
    for name in (EMBEDDED_AV, EMBEDDED_AR):
        sidecar = yaml.safe_load((resolve_nla(name) / "nla_meta.yaml").read_text())
        assert sidecar["nla_id"] == found.nla_id
    assert found.metric == "fve"
    assert len(found.values) >= 1_000
    listed = (resolve_nla(EMBEDDED_AR) / "SHA256SUMS").read_text()
    assert "  calibration.json" in listed


def test_backtest_ranks_decodes_by_the_set_that_is_named(
    cli: Cli, gated: Path, scale: Path, tmp_path: Path
) -> None:
    corpus = decodes(tmp_path / "a.jsonl", [0.1, 0.6, 0.9, None])
    named = ("rules", "backtest", gated, "--corpus", corpus, "--json")
    (found,) = cli(*named, "--calibration", scale).objects
    assert found["rules"][0]["samples"]["hits"] == 2
    assert found["rules"][0]["gated"]["dropped"] == 2
    (without,) = cli(*named).objects
    assert without["rules"][0]["samples"]["hits"] == 0
    assert cli(*named, "--calibration", tmp_path / "none.json").code == 2


def test_decodes_that_name_the_embedded_pair_are_ranked_by_its_set(
    cli: Cli, gated: Path, tmp_path: Path
) -> None:
    shipped = read_calibration(resolve_nla(EMBEDDED_AR) / "calibration.json")
    corpus = decodes(tmp_path / "a.jsonl", [-1.0, 1.0], nla_id=shipped.nla_id)
    named = ("rules", "backtest", gated, "--corpus", corpus, "--json")
    assert cli(*named).objects[0]["rules"][0]["samples"]["hits"] == 1


def test_a_run_under_another_set_is_not_resumed(
    cli: Cli, gated: Path, scale: Path, tmp_path: Path
) -> None:
    corpus = decodes(tmp_path / "a.jsonl", [0.1])
    named = ("rules", "backtest", gated, "--corpus", corpus, "--resume", tmp_path / "journal")
    assert cli(*named, "--calibration", scale).code == 0
    other = cli(*named)
    assert other.code == 3
    assert "written under other calibration" in other.err


def test_explain_tune_coverage_and_diff_take_the_set(
    cli: Cli, gated: Path, scale: Path, tmp_path: Path
) -> None:
    by = ("--calibration", scale)
    said = ("rules", "explain", "anything", "--rules", gated, "--text", "word", "--fve")
    assert cli(*said, "0.7", *by).code == 0
    held = cli(*said, "0.2", *by, "--json")
    assert (held.code, held.objects[0]["fidelity"]["figure"]) == (1, 21.0)
    assert cli(*said, "0.7").code == 1
    good = decodes(tmp_path / "good.jsonl", [0.9, 0.8])
    bad = decodes(tmp_path / "bad.jsonl", [0.6, 0.55])
    (tuned,) = cli(
        "rules", "tune", "anything", "--rules", gated, "--fp", bad, "--tp", good, "--json", *by
    ).objects
    assert (len(tuned["false_positives"]), tuned["true_positives"]) == (2, 2)
    fired = cli("rules", "coverage", gated, "--corpus", good, *by, "--json").objects[0]
    assert not [i for i in fired["issues"] if i["kind"] == "never_fired"]
    strict = tmp_path / "strict.yaml"
    strict.write_text(gated.read_text().replace("min: 50", "min: 85"))
    (change,) = cli("rules", "diff", gated, strict, "--corpus", good, *by, "--json").objects
    assert [v["kind"] for v in change["verdicts"]] == ["lost"]


def test_inline_tests_are_ranked_by_their_fve_where_they_give_no_percentile(
    cli: Cli, gated: Path, scale: Path
) -> None:
    test = "  - {name: poor, explanation: word, fve: 0.2, expect: no_match}\n"
    gated.write_text(gated.read_text().replace("tests:\n", "tests:\n" + test))
    assert cli("rules", "test", gated).code == 1
    assert cli("rules", "test", gated, "--calibration", scale).code == 0
    gated.write_text(gated.read_text().replace("fve: 0.2", "fve: 0.2, percentile: 90"))
    assert cli("rules", "test", gated, "--calibration", scale).code == 1


def test_doctor_tells_of_the_set_and_of_its_lack(
    cli: Cli, config: Config, gated: Path, tiny: Any, tmp_path: Path
) -> None:
    def check(path: str) -> dict[str, str]:
        (row,) = [
            c
            for c in cli("doctor", "-c", path, "--json").objects[0]["checks"]
            if c["name"] == "calibration"
        ]
        return dict(row)

    lacking = check(config())
    assert lacking["state"] == "warning"
    assert "percentiles are unknown to anything" in lacking["message"]
    nla_id = yaml.safe_load((tiny.av / "nla_meta.yaml").read_text()).get("nla_id", tiny.av.name)
    values = [n / 100 for n in range(40)]
    own, foreign = tmp_path / "own.json", tmp_path / "foreign.json"
    write_calibration(own, Calibration.of(nla_id, values))
    write_calibration(foreign, Calibration.of("another", values))
    rules = {"rules": [str(gated)]}
    there = check(config(detect={**rules, "encoder": None, "calibration": str(own)}))
    assert (there["state"], "fve of 40 decodes" in there["message"]) == ("ok", True)
    wrong = check(config(detect={**rules, "encoder": None, "calibration": str(foreign)}))
    assert (wrong["state"], "of 'another'" in wrong["message"]) == ("fault", True)


def test_a_set_that_lies_beside_a_shared_reconstructor_is_not_taken_for_another_pair() -> None:
    shipped = read_calibration(resolve_nla(EMBEDDED_AR) / "calibration.json")
    taken = calibration_for(Settings(), shipped.nla_id)
    assert taken is not None
    assert taken.digest == shipped.digest
    assert calibration_for(Settings(), "a-verbalizer-of-ones-own") is None


def test_a_start_logs_which_rules_lack_a_set(
    gated: Path, rule: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = Calibration.of("pair", [n / 100 for n in range(40)])
    with caplog.at_level(logging.WARNING, "nae_monitor"):
        warn_of_unknown_percentiles(load_rules([gated]), known)
        assert caplog.messages == []
        warn_of_unknown_percentiles(load_rules([gated]), None)
    (message,) = caplog.messages
    assert message.startswith("no calibration set: percentiles are unknown to anything")
