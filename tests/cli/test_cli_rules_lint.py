"""``rules lint``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.fixture
def clean(rule: Path) -> Path:
    text = (
        rule.read_text().replace("regex: ['.']", "regex: ['conceal']").replace("'word'", "conceal")
    )
    rule.write_text(text + "  - {explanation: other, expect: no_match}\n")
    return rule


def test_lint_names_every_problem_with_its_place(cli: Cli, rule: Path) -> None:
    rule.write_text(rule.read_text().replace("severity: low", "severty: low"))
    done = cli("rules", "lint", rule)
    assert done.code == 2
    assert f"error: {rule}:8:1: " in done.err
    assert "severity" in done.err


def test_lint_of_a_good_rule_says_so(cli: Cli, clean: Path) -> None:
    done = cli("rules", "lint", clean)
    assert done.code == 0
    assert done.out.startswith("1 rule, no problem")


def test_warnings_exit_with_one(cli: Cli, rule: Path) -> None:
    done = cli("rules", "lint", rule)
    assert done.code == 1
    assert f"warning: {rule}:13:3: " in done.err
    assert "[NM205]" in done.err
    assert "2 warnings" in done.out


def test_a_missing_rule_file_exits_with_two(cli: Cli, tmp_path: Path) -> None:
    assert cli("rules", "lint", tmp_path / "none").code == 2


def test_fix_mends_the_file(cli: Cli, clean: Path) -> None:
    good = clean.read_text()
    clean.write_text(good.replace("severity: low", "severty: low"))
    done = cli("rules", "lint", clean, "--fix")
    assert done.code == 0
    assert clean.read_text() == good
    assert "1 edits" in done.err


def test_json_and_sarif_name_the_same_findings(cli: Cli, rule: Path) -> None:
    (found,) = cli("rules", "lint", rule, "--format", "json").objects
    log = json.loads(cli("rules", "lint", rule, "--format", "sarif").out)
    codes = [diagnostic["code"] for diagnostic in found["diagnostics"]]
    assert codes == ["NM205", "NM601"]
    assert [result["ruleId"] for result in log["runs"][0]["results"]] == codes
    assert cli("rules", "lint", rule, "--json").objects == [found]


def test_a_count_out_of_reach_needs_the_sampled_share(cli: Cli, clean: Path) -> None:
    assert cli("rules", "lint", clean, "--sampled-share", "0.1").code == 0
    assert cli("rules", "lint", clean, "--sampled-share", "2").code == 2
