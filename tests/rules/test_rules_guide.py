"""What the guide to rules shows is what the package takes: every example of it is run."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nae_monitor.detect import Encoder, builtin_rules_directory, load_rules, run_inline_tests
from nae_monitor.detect.lint.run import lint
from nae_monitor.detect.tools.layout import laid_out
from nae_monitor.settings import Settings

GUIDE = builtin_rules_directory() / "README.md"
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
HEADER = """\
schema_version: 1
title: A snippet of the guide
id: 3d1f6c58-7a0e-4b92-8c4d-5e2a9f7b6c10
name: snippet
severity: low
"""
EXAMPLE = re.compile(r"^\s*# (match|no match): (.*)$", re.M)


def blocks(first: str) -> list[str]:
    """Those that begin with some text."""
    found = [block for block in BLOCKS if block.startswith(first)]
    assert found
    return found


WHOLE = [block for block in BLOCKS if block.startswith("schema_version")]
SNIPPETS = [block for block in BLOCKS if EXAMPLE.search(block)]


def matcher(block: str) -> str:
    ((_, selection),) = yaml.safe_load(block).items()
    (kind,) = {*selection} - {"field", "quotes"}
    return str(kind)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    for number, block in enumerate(WHOLE):
        (tmp_path / f"{number}.yaml").write_text(block, encoding="utf-8")
    return tmp_path


def test_its_documents_load_beside_the_packs_and_pass_their_own_tests(written: Path) -> None:
    rules = load_rules(["builtin", written])
    own = {rule.name for rule in rules.every if Path(rule.file).parent == written}
    assert own == {"key_recorder", "key_recorder_again", "spying"}
    results = [r for r in run_inline_tests(rules) if r.rule_name in own]
    assert [r for r in results if r.outcome != "passed"] == []
    enabled = {rule.name for rule in rules.every if rule.enabled}
    assert {"low_fidelity_decode", "out_of_band_reconstruction"} <= enabled


def test_its_first_rule_stands_alone(written: Path) -> None:
    results = run_inline_tests(load_rules([written / "0.yaml"]))
    assert [result.outcome for result in results] == ["passed"] * 6


def test_lint_and_fmt_have_nothing_to_say_of_its_documents(written: Path) -> None:
    report = lint([builtin_rules_directory(), written])
    assert report.diagnostics == ()
    assert [laid_out(block, "guide") for block in WHOLE] == WHOLE


@pytest.mark.parametrize("block", SNIPPETS, ids=matcher)
def test_each_matcher_answers_as_the_comments_of_its_example_say(
    block: str, tmp_path: Path, encoder: Encoder
) -> None:
    ((name, selection),) = yaml.safe_load(block).items()
    tests = [example(name, *found) for found in EXAMPLE.findall(block)]
    rule = {"detection": {name: selection, "condition": name}, "tests": tests}
    (tmp_path / "snippet.yaml").write_text(HEADER + yaml.safe_dump(rule), encoding="utf-8")
    results = run_inline_tests(load_rules([tmp_path]), encoder)
    assert [r.outcome for r in results] == ["passed", "passed"], results


def example(name: str, expected: str, text: str) -> dict[str, Any]:
    given: dict[str, Any] = {"explanation": yaml.safe_load(text)}
    if text.startswith("score "):
        given = {"explanation": "any", "scores": {name: float(text.removeprefix("score "))}}
    return {"expect": expected.replace(" ", "_"), **given}


def test_every_matcher_is_shown() -> None:
    assert sorted(map(matcher, SNIPPETS)) == sorted(
        ["keywords", "regex", "fuzzy", "semantic", "activation", "value"]
    )


def test_its_settings_are_read(tmp_path: Path) -> None:
    for block in blocks("# monitor.yaml"):
        Settings.from_yaml(tmp_path / "monitor.yaml", block)


def test_its_parts_of_rules_are_read_where_a_rule_stands_around_them(tmp_path: Path) -> None:
    detection = "detection:\n  near: {regex: [a+]}\n  user_asked: {field: prompt, regex: [b+]}\n"
    parts = "".join(block.removeprefix("# in a rule\n") for block in blocks("# in a rule"))
    text = HEADER + detection + "  condition: near or user_asked\n" + parts
    (tmp_path / "rule.yaml").write_text(text, encoding="utf-8")
    (rule,) = load_rules([tmp_path]).rules
    assert rule.fidelity is not None
    assert rule.suppress is not None
    assert rule.actions.stop_generation is not None
    assert [exception.name for exception in rule.exceptions] == ["authorised_lab", "asked_about_it"]
