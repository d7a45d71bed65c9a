"""The alerts of a replay, and what suppression holds back of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from replay_rules import RULE_A

from nae_monitor.detect import Correlator, Judge, load_rules
from nae_monitor.recording import RecordingWriter, RequestRecord
from nae_monitor.records import (
    Activation,
    Coverage,
    Decoding,
    Phase,
    Request,
    SampleReason,
    VerdictState,
)
from nae_monitor.replay import ReplayRun, replay

SECOND_NS = 10**9
RULES = f"""{RULE_A}suppress: {{group_by: [session_id], for: 60s}}
---
schema_version: 1
title: Twice
id: 6b1f0c1e-3c1d-4c7e-9a53-0d7f6a4b9e02
name: twice
severity: high
aggregation: {{type: event_count, rules: [a], window: {{tokens: 9}}, condition: {{gte: 2}}}}
"""


def recorded(path: Path, starts_s: dict[str, int]) -> None:
    """Requests of one session with hits at tokens 0 and 1, a second apart."""
    manifest = {"model": "m", "layer": 3, "nla_id": "n"}
    with RecordingWriter(path, manifest=manifest, d_model=4, content="full") as writer:
        for name, start_s in starts_s.items():
            request = Request(name, name, "m", session_id="s", started_unix_ns=start_s * SECOND_NS)
            for position in (0, 1):
                captured = (start_s + position) * SECOND_NS if start_s else 0
                activation = Activation(
                    request,
                    position,
                    7,
                    "t",
                    Phase.COMPLETION,
                    3,
                    torch.ones(4),
                    SampleReason.RANDOM,
                    captured_unix_ns=captured,
                )
                text = Decoding("they hide it", True, 0.9, 0.8, 1, 8, "n", 3, 0.1)
                writer.write_activation(activation, text)
            nothing = Coverage(2, 2, 2, 2, 2, 0, {})
            texts = {"prompt_token_texts": (), "output_token_texts": ("t", "t")}
            writer.write_request(
                RequestRecord(request, "", 0, 2, nothing, VerdictState.ALERT, **texts)  # type: ignore[arg-type]
            )


def replayed(tmp_path: Path, starts_s: dict[str, int]) -> tuple[ReplayRun, list[Any]]:
    (tmp_path / "rules.yaml").write_text(RULES)
    recorded(tmp_path / "live", starts_s)
    rules = load_rules([tmp_path / "rules.yaml"])
    run = replay(
        [tmp_path / "live"],
        tmp_path / "run",
        decoder=None,
        judge=Judge(rules),
        correlate=Correlator(lambda: rules),
        suppress=rules.suppressions(),
    )
    lines = (tmp_path / "run" / "alerts.jsonl").read_text().splitlines()
    return run, [json.loads(line) for line in lines]


def test_repeats_are_held_back_by_the_time_of_capture_not_of_reading(tmp_path: Path) -> None:
    # Read in the order of their names, captured in the order c, b, a.
    run, alerts = replayed(tmp_path, {"a": 1_100, "b": 1_030, "c": 1_000})
    plain = [a for a in alerts if a["rule_name"] == "a"]
    assert [(a["request_id"], a["fate"], a["held_back"]) for a in plain] == [
        ("c", "sent", 0),
        ("b", "repeat", 0),
        ("a", "sent", 2),
    ]
    assert run.alerts == {"repeat": 1, "sent": 5}
    assert {a["count"] for a in plain} == {2}


def test_alerts_of_aggregation_rules_are_there_too(tmp_path: Path) -> None:
    _, alerts = replayed(tmp_path, {"a": 1_000})
    assert [(a["rule_name"], a["severity"], a["time_unix_ns"]) for a in alerts] == [
        ("twice", "high", 1_001 * SECOND_NS),
        ("a", "medium", 1_001 * SECOND_NS),
    ]


def test_without_capture_times_the_fate_is_not_guessed(tmp_path: Path) -> None:
    run, alerts = replayed(tmp_path, {"a": 0, "b": 0})
    assert run.alerts == {"sent": 2, "untimed": 2}
    assert {a["rule_name"] for a in alerts if a["fate"] == "untimed"} == {"a"}


def test_alerts_hold_no_text_and_are_the_same_each_time(tmp_path: Path) -> None:
    starts = {"a": 1_000, "b": 1_030}
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    replayed(tmp_path / "1", starts)
    replayed(tmp_path / "2", starts)
    first, again = ((tmp_path / name / "run" / "alerts.jsonl").read_bytes() for name in "12")
    assert first == again
    assert b"hide" not in first
