"""A replayed run still says which generations were stopped, and the report shows it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from nae_monitor.recording import Recording, RecordingWriter, canonical_line
from nae_monitor.records import (
    Activation,
    Decoding,
    Finding,
    FindingState,
    Phase,
    Request,
    SampleReason,
    Severity,
    Stop,
    StopOutcome,
    Transcript,
)
from nae_monitor.replay import replay, write_report

REQUEST = Request("r", "r", "model-a", started_unix_ns=5)
ASKED = Stop(
    "r", 5, "id", "stopper", "2", 1, True, StopOutcome.REQUESTED, 1_790_000_000_000_000_000
)
DONE = replace(ASKED, outcome=StopOutcome.BLOCKED, time_unix_ns=ASKED.time_unix_ns + 1)
LATE = replace(DONE, behind_tokens=2)
SHADOW = Stop(
    "s", 5, "id", "stopper", "2", 9, False, StopOutcome.WOULD_BLOCK, ASKED.time_unix_ns,
    "the rule is in shadow",
)  # fmt: skip


class Matching:
    """Matches every row."""

    def judge(
        self, activation: Activation, decoding: Decoding, transcript: Transcript
    ) -> tuple[Finding, ...]:
        place = activation.request.request_id, activation.position
        names = "id", "stopper", "2", "Stops what it sees"
        return (Finding(*place, *names, Severity.HIGH, FindingState.MATCH),)


def record(path: Path, stops: list[Stop]) -> Path:
    decoding = Decoding("text", True, 0.9, 0.5, 1, 2, "nla", 1, 0.1)
    with RecordingWriter(
        path, manifest={"model": "model-a", "layer": 2}, d_model=4, content="full"
    ) as writer:
        writer.write_activation(
            Activation(
                REQUEST, 1, 7, "t", Phase.COMPLETION, 2, torch.ones(4), SampleReason.EVERY_N
            ),
            decoding,
        )
        writer.write_stops(stops)
    return path


def without_stops(path: Path) -> Path:
    """As a writer of the first format left it."""
    (path / "stops.jsonl").unlink()
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(canonical_line({**manifest, "format_version": 1}))
    *seals, totals = (path / "seals.jsonl").read_text().splitlines()
    old = {k: v for k, v in json.loads(totals).items() if not k.startswith("stops")}
    (path / "seals.jsonl").write_text("".join(f"{x}\n" for x in (*seals, canonical_line(old))))
    return path


def page(run: Path, tmp_path: Path) -> str:
    write_report(run, tmp_path / "report.html")
    return " ".join((tmp_path / "report.html").read_text(encoding="utf-8").split())


def test_a_replay_keeps_what_was_stopped_live(tmp_path: Path) -> None:
    live = record(tmp_path / "live", [ASKED, SHADOW, LATE])
    replay([live], tmp_path / "again", decoder=None, judge=Matching())
    again = Recording.open(tmp_path / "again")
    assert list(again.stops()) == [ASKED, SHADOW, LATE]
    assert again.stops_recorded
    replay([tmp_path / "again"], tmp_path / "twice", decoder=None, judge=Matching())
    assert list(Recording.open(tmp_path / "twice").stops()) == [ASKED, SHADOW, LATE]


def test_the_report_names_rule_mode_token_and_outcome_of_each_stop(tmp_path: Path) -> None:
    live = record(tmp_path / "live", [ASKED, SHADOW, LATE])
    replay([live], tmp_path / "again", decoder=None, judge=Matching())
    text = page(tmp_path / "again", tmp_path)
    assert 'Stops of generations <span class="pill">2<' in text
    assert "<span>stop: blocked, 2 tokens after the hit</span>" in text  # on the rule's alert
    blocked = (
        '2026-09-21 14:13 UTC: rule <span class="mono">stopper v2</span> (enforce), request '
        '<span class="mono">r</span> at token 1: <b>blocked, 2 tokens after the hit</b>'
    )
    assert blocked in text
    assert "at token 9: <b>would block: the rule is in shadow</b>" in text


def test_a_recording_that_knew_no_stops_is_replayed_and_stays_unknowing(tmp_path: Path) -> None:
    old = without_stops(record(tmp_path / "old", []))
    new = record(tmp_path / "new", [ASKED, LATE])
    done = replay([old], tmp_path / "again", decoder=None, judge=Matching())
    assert (done.judged, done.findings) == (1, 1)
    assert not Recording.open(tmp_path / "again").stops_recorded
    assert 'Stops of generations <span class="pill">unknown<' in page(tmp_path / "again", tmp_path)
    replay([old, new], tmp_path / "both", decoder=None, judge=Matching())
    both = Recording.open(tmp_path / "both")
    assert list(both.stops()) == [ASKED, LATE]
    assert not both.stops_recorded
    assert "Not all of what was recorded here says" in page(tmp_path / "both", tmp_path)


def test_a_run_without_stops_says_nothing_of_them(tmp_path: Path) -> None:
    assert "Stops of generations" not in page(record(tmp_path / "live", []), tmp_path)
