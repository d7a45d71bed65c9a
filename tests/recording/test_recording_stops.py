"""Stops in a recording: whole, checked, and unknown where an older format had none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.errors import RecordingError
from nae_monitor.recording import Recording, RecordingWriter, canonical_line, latest_stops
from nae_monitor.recording.stops import stop_from_json, stop_to_json
from nae_monitor.records import Stop, StopOutcome

count = st.integers(0, 2**62)
stops = st.builds(
    Stop,
    request_id=st.text(max_size=8),
    started_unix_ns=count,
    rule_id=st.text(max_size=8),
    rule_name=st.text(max_size=8),
    rule_version=st.text(max_size=4),
    position=count,
    enforced=st.booleans(),
    outcome=st.sampled_from(StopOutcome),
    time_unix_ns=count,
    why=st.text(max_size=8),
    within_tokens=st.none() | count,
    behind_tokens=st.none() | count,
)
ASKED = Stop("r", 5, "id", "name", "2", 17, True, StopOutcome.REQUESTED, 100, within_tokens=4)
DONE = replace(ASKED, outcome=StopOutcome.BLOCKED, time_unix_ns=200, behind_tokens=2)


def write(path: Path, found: Sequence[Stop], *, close: bool = True) -> Path:
    writer = RecordingWriter(path, manifest={}, d_model=4, content="none")
    writer.write_stops(found)
    if close:
        writer.close()
    return path


def as_format_1(path: Path) -> None:
    """What a writer that knew of no stops left behind."""
    (path / "stops.jsonl").unlink()
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(canonical_line({**manifest, "format_version": 1}))
    (totals,) = (json.loads(line) for line in (path / "seals.jsonl").read_text().splitlines())
    old = {name: value for name, value in totals.items() if not name.startswith("stops")}
    (path / "seals.jsonl").write_text(canonical_line(old) + "\n")


@given(stops)
def test_a_stop_in_is_the_stop_out(stop: Stop) -> None:
    line = canonical_line(stop_to_json(stop))
    assert stop_from_json(json.loads(line), "here") == stop


@pytest.mark.parametrize("close", [True, False])
def test_what_was_written_is_read_in_order_closed_or_not(tmp_path: Path, close: bool) -> None:
    recording = Recording.open(write(tmp_path / "run", [ASKED, DONE], close=close))
    assert recording.stops_recorded == close  # of one that is not closed, nobody knows
    assert list(recording.stops()) == [ASKED, DONE]


@given(st.lists(stops, max_size=6), st.lists(st.sampled_from(StopOutcome), max_size=6))
def test_the_latest_word_on_each_turn_and_rule_counts(
    found: list[Stop], outcomes: list[StopOutcome]
) -> None:
    words = [*found, *(replace(s, outcome=o) for s, o in zip(found, outcomes, strict=False))]
    expected: dict[Any, Stop] = {}
    for word in words:
        expected[word.request_id, word.started_unix_ns, word.rule_id] = word
    assert latest_stops(words) == list(expected.values())


def test_a_recording_of_the_first_format_says_that_it_does_not_know(tmp_path: Path) -> None:
    as_format_1(write(tmp_path / "run", []))
    recording = Recording.open(tmp_path / "run")
    assert recording.complete
    assert not recording.stops_recorded
    assert (list(recording.stops()), list(recording.findings())) == ([], [])


@pytest.mark.parametrize("lost", [0, 2, None])
def test_stops_that_were_lost_are_in_the_totals(tmp_path: Path, lost: int | None) -> None:
    with RecordingWriter(tmp_path / "run", manifest={}, d_model=4, content="none") as writer:
        writer.write_stops([ASKED])
        writer.close(stops_lost=lost)
    recording = Recording.open(tmp_path / "run")
    assert recording.complete
    assert recording.stops_lost == lost
    assert recording.stops_recorded == (lost == 0)


@pytest.mark.parametrize("change", ["edited", "cut", "missing"])
def test_stops_that_are_not_those_sealed_are_refused(tmp_path: Path, change: str) -> None:
    path = write(tmp_path / "run", [ASKED, DONE]) / "stops.jsonl"
    if change == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-9] if change == "cut" else data.replace(b"blocked", b"refused"))
    with pytest.raises(RecordingError, match=r"stops\.jsonl"):
        list(Recording.open(tmp_path / "run").stops())


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "perhaps"},
        {"position": "17"},
        {"position": True},
        {"enforced": 1},
        {"why": None},
        {"behind_tokens": 1.5},
    ],
)
def test_a_line_that_is_no_stop_is_refused_by_its_place(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = write(tmp_path / "run", [ASKED], close=False)
    line = canonical_line(stop_to_json(ASKED) | change)
    with (path / "stops.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RecordingError, match=r"stops\.jsonl:2: not a stop"):
        list(Recording.open(path).stops())
