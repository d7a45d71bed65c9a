"""``rules tune`` and ``rules coverage``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.fixture
def words(rule: Path) -> Path:
    rule.write_text(rule.read_text().replace("regex: ['.']", "keywords: {any: [hide, word]}"))
    return rule


def corpora(tmp_path: Path, wrong: str, right: str) -> tuple[str | Path, ...]:
    (tmp_path / "fp.txt").write_text(wrong)
    (tmp_path / "tp.txt").write_text(right)
    return "--fp", tmp_path / "fp.txt", "--tp", tmp_path / "tp.txt"


def test_tune_proposes_what_keeps_every_true_positive(
    cli: Cli, words: Path, tmp_path: Path
) -> None:
    files = corpora(tmp_path, "hide a \x1b[31m cake\nhide the cake\n", "word\nno\nhide the plan\n")
    done = cli("rules", "tune", "anything", "--rules", words, "--no-models", *files)
    assert done.code == 0
    assert "anything: matches 2 false positives and 2 true ones" in done.out
    assert f"1 true positives do not match as it is: {tmp_path / 'tp.txt'}:2" in done.out
    assert "takes 2 of 2: exception where explanation holds 'cake'" in done.out
    assert "together (2 of 2):" in done.out
    assert "\x1b" not in done.out
    (found,) = cli(
        "rules", "tune", "anything", "--rules", words, "--no-models", "--json", *files
    ).objects
    assert found["left"] == []
    assert found["proposals"][0]["kind"] == "exception"
    assert len(found["proposals"][0]["takes"]) == 2


def test_tune_exits_with_one_where_nothing_helps(cli: Cli, words: Path, tmp_path: Path) -> None:
    files = corpora(tmp_path, "hide it\n", "hide it\n")
    done = cli("rules", "tune", "anything", "--rules", words, "--no-models", *files)
    assert done.code == 1
    assert f"1 left: {tmp_path / 'fp.txt'}:1" in done.out
    assert cli("rules", "tune", "anythin", "--rules", words, *files).code == 2
    assert cli("rules", "tune", "anything", "--rules", words, "--fp", tmp_path / "x").code == 2


def test_coverage_lists_empty_categories_and_what_wants_care(
    cli: Cli, words: Path, tmp_path: Path
) -> None:
    done = cli("rules", "coverage", words, "--no-models")
    assert done.code == 1
    assert "untested: anything: no test expects no match" in done.out
    assert "unclassified: anything: has no nae.* tag" in done.out
    assert "0 of " in done.out
    (found,) = cli("rules", "coverage", words, "--no-models", "--json").objects
    assert {issue["kind"] for issue in found["issues"]} == {"untested", "unclassified"}
    assert "nae.deception" in found["uncovered"]
    (tmp_path / "c.txt").write_text("nothing at all\n")
    fired = cli("rules", "coverage", words, "--no-models", "--corpus", tmp_path / "c.txt")
    assert "never fired: anything: never fired in 1 samples" in fired.out


def test_coverage_of_a_kept_rule_fails_only_when_strict(cli: Cli, words: Path) -> None:
    text = words.read_text().replace(
        "tests:\n", "tests:\n  - {explanation: none, expect: no_match}\n"
    )
    words.write_text(text.replace("severity: low", "severity: low\ntags: [nae.deception]"))
    done = cli("rules", "coverage", words, "--no-models")
    assert done.code == 0, done.out
    assert "every rule is tested, classified and in date" in done.out
    assert cli("rules", "coverage", words, "--no-models", "--strict").code == 1
