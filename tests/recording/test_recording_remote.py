"""Recordings behind a URL read as they do on a disk, and are refused as clearly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recording_scenario import write_turns

from nae_monitor.errors import ConfigurationError, RecordingError
from nae_monitor.recording import Recording, RecordingWriter, open_recordings
from nae_monitor.records import Activation, Decoding, Finding, Transcript
from nae_monitor.replay import compare, replay


class Silent:
    def judge(self, _: Activation, __: Decoding, ___: Transcript) -> tuple[Finding, ...]:
        return ()


@pytest.fixture
def store() -> Iterator[Any]:
    memory = fsspec.filesystem("memory")
    memory.mkdir("/bucket")
    yield memory
    memory.rm("/bucket", recursive=True)


def put(store: Any, local: Path, name: str) -> None:
    store.put(str(local), f"/{name}", recursive=True)


def rows(recording: Recording) -> list[Any]:
    return [
        (row.activation.request.request_id, row.activation.vector.tolist(), row.decoding)
        for row in recording.activations()
    ]


def test_a_recording_behind_a_url_reads_as_it_does_on_disk(store: Any, tmp_path: Path) -> None:
    local = write_turns(tmp_path / "run")
    put(store, local, "bucket/run")
    (found,) = open_recordings(["memory://bucket"])
    here = Recording.open(local)
    assert found.complete
    assert rows(found) == rows(here)
    assert list(found.requests()) == list(here.requests())
    assert list(found.findings()) == list(here.findings())
    assert compare(local, "memory://bucket/run").identical


def test_a_replay_from_a_url_gives_what_one_from_disk_gives(store: Any, tmp_path: Path) -> None:
    local = write_turns(tmp_path / "run")
    put(store, local, "bucket/run")
    for name, source in (("a", str(local)), ("b", "memory://bucket/run")):
        replay([source], tmp_path / name, decoder=None, judge=Silent(), where="tenant = t1")
    files = [
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in "ab"
    ]
    assert files[0] == files[1]


def test_a_file_of_vectors_behind_a_url_is_read(store: Any, tmp_path: Path) -> None:
    kind = pa.list_(pa.float32(), 2)
    table = pa.table({"activation_vector": pa.array([[1.0, 2.0], [3.0, 4.0]], kind)})
    pq.write_table(table, tmp_path / "v.parquet")
    put(store, tmp_path / "v.parquet", "bucket/v.parquet")
    found = Recording.open("memory://bucket/v.parquet")
    vectors = [row.activation.vector.tolist() for row in found.activations()]
    assert vectors == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("damage", ["missing", "cut", "flip"])
def test_damage_behind_a_url_is_named(store: Any, tmp_path: Path, damage: str) -> None:
    put(store, write_turns(tmp_path / "run"), "bucket/run")
    name = "/bucket/run/activations-00001.parquet"
    data = bytearray(store.cat(name))
    data[len(data) // 2] ^= 1
    if damage == "missing":
        store.rm(name)
    else:
        store.pipe(name, bytes(data[:-9] if damage == "cut" else data))
    with pytest.raises(RecordingError, match=r"activations-00001\.parquet"):
        rows(Recording.open("memory://bucket/run"))
    with pytest.raises(RecordingError, match="does not exist"):
        Recording.open("memory://bucket/other")


def test_an_unknown_protocol_and_a_remote_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        Recording.open("nosuch://bucket/run")
    with pytest.raises(ConfigurationError, match="is not on this machine"):
        RecordingWriter("memory://bucket/run", manifest={}, d_model=1, content="none")
