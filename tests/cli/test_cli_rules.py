"""``rules test``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

Cli = Callable[..., Any]
SEMANTIC = """
  meaning: {semantic: {exemplars: [a plan to hide something], threshold: 0.5}}
  condition: any_text and meaning
tests:
  - {name: needs a model, explanation: 'word', expect: match}
  - {name: has a score, explanation: 'word', scores: {meaning: 0.9}, expect: match}
"""


@pytest.fixture
def semantic(rule: Path) -> Path:
    rule.write_text(rule.read_text().split("  condition:")[0] + SEMANTIC.lstrip("\n"))
    return rule


def test_the_shipped_rules_pass_their_own_tests(cli: Cli) -> None:
    done = cli("rules", "test", "--no-models")
    assert done.code == 0
    assert " 0 failed" in done.out


def test_a_failing_test_is_named_and_exits_with_one(cli: Cli, rule: Path) -> None:
    rule.write_text(rule.read_text().replace("expect: match", "expect: no_match"))
    done = cli("rules", "test", rule, "--no-models")
    assert done.code == 1
    assert "FAILED anything: a word: matched, expected no match" in done.out


def test_a_test_without_its_model_is_skipped_and_shown(cli: Cli, semantic: Path) -> None:
    done = cli("rules", "test", semantic, "--no-models")
    assert done.code == 0
    assert "SKIPPED anything: needs a model" in done.out
    assert "1 passed, 0 failed, 1 skipped" in done.out


def test_strict_makes_a_skipped_test_a_failure(cli: Cli, semantic: Path) -> None:
    assert cli("rules", "test", semantic, "--no-models", "--strict").code == 1


def test_results_come_as_json(cli: Cli, semantic: Path) -> None:
    (found,) = cli("rules", "test", semantic.parent, "--no-models", "--json").objects
    assert found["counts"] == {"passed": 1, "skipped": 1}
    assert found["results"][1]["rule"] == "anything"


def test_k_chooses_rules_by_name(cli: Cli) -> None:
    assert cli("rules", "test", "-k", "cyber", "--no-models").out.startswith("1 rule: ")
    missing = cli("rules", "test", "-k", "nothing", "--no-models")
    assert missing.code == 2
    assert "no rule's name holds 'nothing'" in missing.err


def test_junit_and_coverage_are_written(cli: Cli, rule: Path, tmp_path: Path) -> None:
    out = tmp_path / "junit.xml"
    done = cli("rules", "test", rule, "--no-models", "--junit", out, "--coverage")
    assert done.code == 0
    assert ElementTree.parse(out).getroot().get("tests") == "1"
    assert "any_text" in done.out


def test_coverage_under_its_minimum_exits_with_one(cli: Cli, rule: Path) -> None:
    done = cli("rules", "test", rule, "--no-models", "--min", "50", "--json")
    assert done.code == 1
    (found,) = done.objects[0]["coverage"]
    assert found["percent"] == 40.0
    assert found["selections"]["any_text"]["hit"] is True
    assert cli("rules", "test", rule, "--no-models", "--min", "40").code == 0
