"""Erasure: what is to go is in no byte any more, the rest is as before, whatever breaks it off."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock

from nae_monitor.errors import RecordingError
from nae_monitor.recording import (
    Doomed,
    Recording,
    RecordingWriter,
    RequestRecord,
    erase,
    erase_all,
    redo,
)
from nae_monitor.records import (
    Activation,
    Coverage,
    Decoding,
    Finding,
    FindingState,
    Phase,
    Request,
    SampleReason,
    Severity,
    Stop,
    StopOutcome,
    VerdictState,
)

D_MODEL = 4
TENANTS = ("acme", "umbrella")


def request(number: int, turn: int = 0) -> Request:
    name = f"request-{number}"
    tenant = TENANTS[number % 2]
    return Request(name, f"group-{number}", "m", None, tenant, None, 1000 * (number + 1) + turn)


def write(path: Path, *, requests: int = 6, close: bool = True) -> Path:
    writer = RecordingWriter(path, manifest={}, d_model=D_MODEL, content="full", rotate_rows=5)
    for turn in range(2):
        for number in range(requests):
            one = request(number, turn)
            for position in range(3):
                text = f"secret of {one.request_id}"
                activation = Activation(
                    one, position, 7, text, Phase.PROMPT, 3,
                    torch.full((D_MODEL,), float(number)), SampleReason.EVERY_N,
                )  # fmt: skip
                writer.write_activation(
                    activation, Decoding(text, True, 0.9, 0.5, 1, 2, "nla", 1, 0.1)
                )
            names = ("id", "rule", "1", f"Secret of {one.request_id}", Severity.LOW)
            writer.write_findings([Finding(one.request_id, 1, *names, FindingState.MATCH)])
            writer.write_stops(
                [Stop(one.request_id, 5, "id", "n", "1", 1, True, StopOutcome.BLOCKED, 9)]
            )
            coverage = Coverage(3, 3, 3, 3, 3, 0, {})
            writer.write_request(
                RequestRecord(
                    one, f"secret of {one.request_id}", 3, 0, coverage, VerdictState.CLEAN
                )
            )
    if close:
        writer.close()
    return path


def everything(path: Path) -> bytes:
    """Every byte of a directory, and what compression hides."""
    data = b""
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        data += file.name.encode() + file.read_bytes()
        if ".parquet" in file.name and file.stat().st_size:
            data += repr(pq.read_table(file).to_pylist()).encode()
    return data


def state(path: Path) -> list[object]:
    recording = Recording.open(path)
    rows = [
        (row.activation.request.request_id, row.activation.position, row.decoding)
        for row in recording.activations()
    ]
    return [rows, list(recording.requests()), list(recording.findings()), list(recording.stops())]


def rest(path: Path, gone: set[str]) -> list[object]:
    """What should be left of a recording, by a naive reading."""
    rows, records, findings, stops = state(path)
    return [
        [row for row in rows if row[0] not in gone],  # type: ignore[attr-defined]
        [one for one in records if one.request.request_id not in gone],  # type: ignore[attr-defined]
        [one for one in findings if one.request_id not in gone],  # type: ignore[attr-defined]
        [one for one in stops if one.request_id not in gone],  # type: ignore[attr-defined]
    ]


@pytest.mark.parametrize(
    ("doomed", "gone"),
    [
        (Doomed(requests=["request-2"]), {2}),
        (Doomed(requests=["group-1", "request-4"]), {1, 4}),
        (Doomed(tenants=["acme"]), {0, 2, 4}),
        (Doomed(begun_before_unix_ns=3001), {0, 1}),  # the latest turn of 2 began at 3001
        (Doomed(tenants=["umbrella"], begun_before_unix_ns=9999), {0, 1, 2, 3, 4, 5}),
    ],
)
def test_what_is_erased_is_in_no_byte_and_the_rest_is_as_before(
    tmp_path: Path, doomed: Doomed, gone: set[int]
) -> None:
    path = write(tmp_path / "run")
    names = {f"request-{number}" for number in gone}
    expected = rest(path, names)
    erased = erase(path, doomed)
    data = everything(path)
    for number in range(6):
        for name in (f"request-{number}", f"group-{number}"):
            assert (name.encode() in data) == (number not in gone)
    assert state(path) == expected
    assert Recording.open(path).complete
    counts = (erased.requests, erased.activations, erased.records, erased.findings, erased.stops)
    assert counts == tuple(n * len(gone) for n in (1, 6, 2, 2, 2))
    (note,) = Recording.open(path).manifest["erasures"]
    assert (note["requests"], note["activations"]) == counts[:2]
    assert erase(path, doomed).requests == 0  # again: nothing is left to do


def test_a_dry_run_tells_and_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    before = everything(path)
    told = erase(path, Doomed(tenants=["acme"]), dry_run=True)
    assert everything(path) == before
    assert erase(path, Doomed(tenants=["acme"])) == told


def test_alerts_and_progress_of_a_replayed_run_go_too(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    lines = [json.dumps({"request_id": f"request-{n}", "alert_id": "x"}) for n in range(6)]
    (path / "alerts.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (path / ".resume").mkdir()
    (path / ".resume" / "judged.jsonl").write_text("secret of request-3")
    assert erase(path, Doomed(requests=["request-3"])).alerts == 1
    assert b"request-3" not in everything(path)
    assert (path / "alerts.jsonl").read_text().count("\n") == 5


def test_progress_of_a_replay_goes_even_where_nothing_else_does(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    (path / ".resume").mkdir()
    (path / ".resume" / "judged.jsonl").write_text("secret of request-99")
    doomed = Doomed(requests=["request-99"])
    assert erase(path, doomed, dry_run=True).requests == 0
    assert b"request-99" in everything(path)
    assert erase(path, doomed).requests == 0
    assert b"request-99" not in everything(path)


def test_a_recording_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "run", close=False)
    before = everything(path)
    with pytest.raises(RecordingError, match="is being written"):
        erase(path, Doomed(tenants=["acme"]))
    assert everything(path) == before


def test_a_crashed_recording_loses_what_cannot_be_told_whose_it_was(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        write(tmp_path / "run", close=False)
        os._exit(0)
    os.waitpid(pid, 0)
    path = tmp_path / "run"
    (path / "activations-00099.parquet.open").write_bytes(b"secret of somebody")
    line = json.loads((path / "findings.jsonl").read_text().splitlines()[0])
    with (path / "findings.jsonl").open("a") as file:
        file.write(json.dumps({**line, "request_id": "waif-1"}) + "\n")
    erase(path, Doomed(requests=["request-3"]))
    assert b"waif-1" in everything(path)
    assert b"somebody" not in everything(path)
    erase(path, Doomed(tenants=["acme"]))
    data = everything(path)
    assert b"waif-1" not in data
    assert b"request-2" not in data
    recording = Recording.open(path)
    assert not recording.complete
    assert {one.request.request_id for one in recording.requests()} <= {"request-1", "request-5"}


def crashed(path: Path, *lost: str) -> Path:
    """A recording that was never closed, with a finding in each of ``lost`` and no row of them."""
    writer = RecordingWriter(path, manifest={}, d_model=D_MODEL, content="full")
    for name in lost:
        names = ("id", "rule", "1", f"Secret of {name}", Severity.LOW)
        writer.write_findings([Finding(name, 1, *names, FindingState.MATCH)])
    writer.abandon()
    return path


OF_GROUP_G7 = ("g7", "g7/2", "g7/2#1", "g7#0", "chatcmpl-g7-0a1b2c3d", "1_cmpl-g7-0-0a1b2c3d")


def test_orphans_of_a_named_group_go_and_those_left_are_counted(tmp_path: Path) -> None:
    path = crashed(tmp_path / "run", *OF_GROUP_G7, "g77", "xg7", "chatcmpl-g8-0a1b2c3d")
    doomed = Doomed(requests=["g7"])
    told = erase(path, doomed, dry_run=True)
    assert (told.requests, told.findings, told.orphans, told.orphans_left) == (6, 6, 6, 3)
    assert erase(path, doomed) == told
    left = {one.request_id for one in Recording.open(path).findings()}
    assert left == {"g77", "xg7", "chatcmpl-g8-0a1b2c3d"}
    assert b"Secret of g7/2" not in everything(path)
    assert erase(path, Doomed(requests=["."])).requests == 0  # a name is no pattern


@pytest.mark.parametrize("name", ["findings.jsonl", "stops.jsonl", "alerts.jsonl"])
def test_a_line_that_was_not_written_whole_goes_where_nothing_else_does(
    tmp_path: Path, name: str
) -> None:
    path = crashed(tmp_path / "run", "r1")
    with (path / name).open("a") as file:
        file.write('{"request_id":"r2","title":"torn sec')
    before = list(Recording.open(path).findings())
    doomed = Doomed(requests=["r2"])
    erase(path, doomed, dry_run=True)
    assert b"torn sec" in everything(path)
    erase(path, doomed)
    assert b"torn sec" not in everything(path)
    assert list(Recording.open(path).findings()) == before


def broken_off_replay(path: Path) -> Path:
    """As it is before the run has a manifest."""
    (path / ".resume").mkdir(parents=True)
    (path / ".resume" / "plan.json").write_text("{}")
    (path / ".resume" / "judged.jsonl").write_text("secret of request-3")
    return path


@pytest.mark.parametrize("given", [".", "replay"])
def test_a_replay_broken_off_before_its_manifest_is_no_way_around_an_erasure(
    tmp_path: Path, given: str
) -> None:
    write(tmp_path / "run")
    replay = broken_off_replay(tmp_path / "replay")
    doomed = Doomed(requests=["request-3"])
    told = list(erase_all([tmp_path / given], doomed, dry_run=True))
    assert b"request-3" in everything(replay)
    assert list(erase_all([tmp_path / given], doomed)) == told
    assert {one.directory.name: one.replays for one in told}["replay"] == 1
    assert b"request-3" not in everything(replay)


def test_a_replay_that_is_running_keeps_its_progress(tmp_path: Path) -> None:
    replay = broken_off_replay(tmp_path / "replay")
    with (
        FileLock(replay / ".resume" / "lock"),
        pytest.raises(RecordingError, match="a replay is writing it"),
    ):
        erase(replay, Doomed(requests=["request-3"]))
    assert b"request-3" in everything(replay)


class PowerGoneError(Exception):
    """Nothing more is done."""


def stop_at(calls: int) -> Callable[..., None]:
    left = [calls]

    def tick(*_: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise PowerGoneError

    return tick


@pytest.mark.parametrize("step", range(0, 26, 2))
def test_broken_off_at_any_step_nothing_or_everything_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    path = write(tmp_path / "run")
    before, after = state(path), rest(path, {"request-0", "request-2", "request-4"})
    tick = stop_at(step)
    with monkeypatch.context() as patch:
        for owner, name in (
            (Path, "replace"), (Path, "unlink"), (Path, "open"), (redo, "sync_directory"),
        ):  # fmt: skip
            real = getattr(owner, name)
            patch.setattr(owner, name, lambda *a, _real=real, **k: (tick(), _real(*a, **k))[1])
        with contextlib.suppress(PowerGoneError):
            erase(path, Doomed(tenants=["acme"]))
    try:
        found = state(path)
    except RecordingError as error:
        assert "an erasure was broken off" in str(error)  # noqa: PT017
    else:
        assert found in (before, after)
    erase(path, Doomed(tenants=["acme"]))
    assert state(path) == after
    assert b"acme" not in everything(path)
    assert not list(path.glob("*.erasing"))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", ".resume", 7])
def test_a_marker_never_points_outside_its_directory(tmp_path: Path, name: object) -> None:
    path = write(tmp_path / "run")
    (tmp_path / "x").write_text("mine")
    (path / "erasure.json").write_text(json.dumps({"put": [], "gone": [name]}))
    with pytest.raises(RecordingError, match=r"erasure\.json"):
        erase(path, Doomed(tenants=["acme"]))
    assert (tmp_path / "x").exists()


def test_damage_is_found_before_anything_is_changed(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    file = path / "activations-00002.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    before = everything_raw(path)
    with pytest.raises(RecordingError, match="activations-00002"):
        erase(path, Doomed(tenants=["acme"]))
    assert everything_raw(path) == before


def everything_raw(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_what_holds_no_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="only recordings"):
        erase(tmp_path, Doomed(tenants=["acme"]))
    assert list(tmp_path.iterdir()) == []


def test_requests_of_unknown_time_are_never_too_old(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "run", manifest={}, d_model=1, content="none") as writer:
        one = replace(request(0), started_unix_ns=0)
        coverage = Coverage(1, 1, 0, 0, 0, 0, {})
        writer.write_request(RequestRecord(one, None, 1, 0, coverage, VerdictState.CLEAN))
    assert erase(tmp_path / "run", Doomed(begun_before_unix_ns=10**18)).requests == 0
