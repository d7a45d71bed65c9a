"""Aggregation rules, suppression and resumption on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
TWICE = """
---
schema_version: 1
title: Twice
id: 7a0f4f2e-3f43-4b0e-9d6c-1c9f6a1b2c3e
name: twice
severity: low
aggregation:
  type: event_count
  rules: [anything]
  group_by: [session_id]
  window: {time: 1h}
  condition: {gte: 2}
suppress: {group_by: [session_id], for: 2h}
"""


@pytest.fixture
def twice(rule: Path) -> Path:
    """A rule over one word, and another over two hits of it in a session."""
    rule.write_text(rule.read_text().replace("regex: ['.']", "regex: ['hide']") + TWICE)
    return rule


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    lines = [
        {"id": f"r{n}", "explanation": "hide", "time_unix_s": 60 * n}
        | {"request": {"session_id": "s"}}
        for n in range(1, 5)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_explain_lays_the_nearest_window_open(cli: Cli, twice: Path, corpus: Path) -> None:
    named = ("rules", "explain", "twice", "--rules", twice, "--no-models", "--text")
    done = cli(*named, f"@{corpus}")
    assert done.code == 0
    assert done.out.startswith("twice (version 1): MATCH")
    assert "asks: event_count of anything gte 2 in 1h by session_id" in done.out
    assert "4 samples; hits: anything 4" in done.out
    assert "repeats for 2h; alerts: 1 go out, 2 held back" in done.out
    first = cli(*named, f"@{corpus}#r1", "--json")
    assert first.code == 1
    assert first.objects[0]["nearest"]["count"] == [1, 1]
    alone = cli(*named, "they hide")
    assert alone.code == 1
    assert "UNDECIDED" in alone.out
    assert "the capture time is not known" in alone.out


def test_explain_tells_whether_suppression_ate_an_alert(
    cli: Cli, twice: Path, corpus: Path
) -> None:
    own = "suppress: {group_by: [session_id], for: 90s}\n---"
    twice.write_text(twice.read_text().replace("---", own, 1))
    named = ("rules", "explain", "anything", "--rules", twice, "--no-models")
    held = cli(*named, "--text", f"@{corpus}#r2")
    assert held.code == 0
    assert "by session_id, repeats for 90s; the alert: held back as a repeat" in held.out
    (sent,) = cli(*named, "--text", f"@{corpus}#r3", "--json").objects
    assert sent["alert"] == "sent"
    assert "telling of 1 findings held back before it" in sent["suppression"]


def test_backtest_judges_aggregations_by_request(cli: Cli, twice: Path, corpus: Path) -> None:
    named = ("rules", "backtest", twice, "--no-models", "--corpus", corpus)
    (found,) = cli(*named, "-k", "twice", "--json").objects
    rules = {tally["rule"]: tally for tally in found["rules"]}
    assert rules["twice"]["kind"] == "aggregation"
    assert (rules["twice"]["requests"]["hits"], rules["twice"]["requests"]["of"]) == (3, 4)
    assert rules["twice"]["alerts"] == {"sent": 1, "repeat": 2, "overflow": 0, "untimed": 0}
    (group,) = rules["anything"]["groups"]
    assert (group["phase"], group["hits"]) == ("completion", 4)
    assert "1 (+2 held back)" in cli(*named).out


def test_backtest_resumes_from_its_journal(
    cli: Cli, twice: Path, corpus: Path, tmp_path: Path
) -> None:
    named = ("rules", "backtest", twice, "--no-models", "--json", "--corpus", corpus)
    journal = ("--resume", tmp_path / "journal")
    first = cli(*named, *journal)
    again = cli(*named, *journal)
    assert first.code == again.code == 0
    assert "4 of 4 verdicts taken from" in again.err
    assert again.objects == first.objects == cli(*named).objects
    twice.write_text(twice.read_text().replace("'hide'", "'seek'"))
    other = cli(*named, *journal)
    assert other.code == 3
    assert "written under other rules" in other.err


def test_lock_and_diff_know_aggregations(cli: Cli, twice: Path, corpus: Path) -> None:
    lock = ("--file", twice.parent.parent / "lock.json")
    assert "2 rules locked" in cli("rules", "lock", twice, *lock).out
    new = twice.parent.parent / "new.yaml"
    new.write_text(twice.read_text().replace("gte: 2", "gte: 3"))
    refused = cli("rules", "lock", new, *lock)
    assert refused.code == 1
    assert "twice: changed, and its version is 1 after 1" in refused.err
    done = cli("rules", "diff", twice, new, "--no-models", "--corpus", corpus)
    assert "aggregation.condition.gte: 2 -> 3" in done.out
    assert "verdicts: 0 new, 1 lost, 0 changed" in done.out
