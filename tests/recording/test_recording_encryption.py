"""Encrypted recordings: nothing is readable without the key, and all is as it was with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recording_scenario import write_turns

from nae_monitor.cli.checks.places import places
from nae_monitor.errors import ConfigurationError, RecordingError
from nae_monitor.parts import check_recording
from nae_monitor.recording import Doomed, Recording, RecordingWriter, erase, export
from nae_monitor.recording.encryption import (
    KEY_BYTES,
    KEY_VARIABLE,
    AesSiv,
    key_id,
    recording_keys,
)
from nae_monitor.settings import RecordSettings, Settings

CANARY = "canary in the coal mine"
KEY, OTHER = "ab" * KEY_BYTES, "cd" * KEY_BYTES


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return write_turns(tmp_path / "secret", text=CANARY, encrypted=True)


def content(path: Path) -> list[Any]:
    """Everything that can be read of a recording."""
    recording = Recording.open(path)
    rows = [
        (one.activation.request, one.activation.vector.tolist(), repr(one))
        for one in recording.activations()
    ]
    return [rows, list(recording.requests()), list(recording.findings()), recording.complete]


def test_no_text_and_no_vector_is_in_its_bytes(secret: Path) -> None:
    plain = write_turns(secret.with_name("plain"), text=CANARY)
    for path in secret.iterdir():
        data = path.read_bytes()
        assert CANARY.encode() not in data, path
        assert b"PAR1" not in data, path
    assert any(CANARY.encode() in path.read_bytes() for path in plain.iterdir())


def test_with_the_key_it_reads_as_one_that_was_never_encrypted(secret: Path) -> None:
    plain = write_turns(secret.with_name("plain"), text=CANARY)
    assert content(secret) == content(plain)
    assert Recording.open(secret).encrypted
    assert not Recording.open(plain).encrypted


def test_the_same_rows_under_the_same_key_are_the_same_bytes(secret: Path) -> None:
    again = write_turns(secret.with_name("again"), text=CANARY, encrypted=True)
    assert {p.name: p.read_bytes() for p in secret.iterdir()} == {
        p.name: p.read_bytes() for p in again.iterdir()
    }


@pytest.mark.parametrize("keys", ["", OTHER])
def test_without_its_key_it_is_refused_by_name(
    secret: Path, keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, keys)
    with pytest.raises(RecordingError) as error:
        Recording.open(secret)
    assert str(secret / "manifest.json") in str(error.value)
    assert key_id(bytes.fromhex(KEY)) in str(error.value)
    assert KEY not in str(error.value)


def test_an_older_key_behind_a_new_one_still_reads(
    secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(secret)
    monkeypatch.setenv(KEY_VARIABLE, f"{OTHER},{KEY}")
    assert content(secret) == before
    newer = write_turns(secret.with_name("newer"), text=CANARY, encrypted=True)
    assert Recording.open(newer).manifest["encryption"]["key_id"] == key_id(bytes.fromhex(OTHER))


@pytest.mark.parametrize("keys", ["abcd", "zz" * KEY_BYTES, f"{KEY},12"])
def test_what_is_no_key_stops_the_start_and_is_not_told(
    tmp_path: Path, keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, keys)
    with pytest.raises(ConfigurationError, match="hexadecimal digits") as error:
        RecordingWriter(tmp_path / "r", manifest={}, d_model=4, content="full", encrypted=True)
    assert keys not in str(error.value)
    assert not (tmp_path / "r").exists()


def test_without_a_key_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(ConfigurationError, match="there is no key"):
        RecordingWriter(tmp_path / "r", manifest={}, d_model=4, content="full", encrypted=True)
    assert not (tmp_path / "r").exists()


def swap_lines(path: Path) -> None:
    first, second, *rest = path.read_text().splitlines()
    path.write_text("\n".join([second, first, *rest]) + "\n")


def drop_first(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[10] = ord("B") if data[10] != ord("B") else ord("C")
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", [swap_lines, drop_first, flip])
def test_lines_that_were_moved_or_changed_are_refused_by_line(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    broken_off = write_turns(tmp_path / "r", encrypted=True, close=False)
    harm(broken_off / "findings.jsonl")
    with pytest.raises(RecordingError, match=r"findings\.jsonl:1: damaged, moved"):
        list(Recording.open(broken_off).findings())


def test_a_file_of_another_recording_does_not_pass_for_its_own(tmp_path: Path) -> None:
    one = write_turns(tmp_path / "one", encrypted=True, created_unix_ns=1)
    other = write_turns(tmp_path / "other", encrypted=True, created_unix_ns=2)
    for name in ("activations-00000.parquet", "seals.jsonl"):
        shutil.copy(other / name, one / name)
    for path in sorted(other.glob("*.parquet")):
        shutil.copy(path, one / path.name)
    with pytest.raises(RecordingError, match=r"activations-00000\.parquet: damaged, moved"):
        list(Recording.open(one).activations())


def test_a_manifest_that_hides_the_encryption_gives_no_rows(secret: Path) -> None:
    manifest = secret / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"encryption"', '"encryptioN"'))
    with pytest.raises(RecordingError, match=r"activations-00000\.parquet"):
        list(Recording.open(secret).activations())


def test_erasure_leaves_it_encrypted_and_whole(secret: Path) -> None:
    before = content(secret)
    erase(secret, Doomed(requests=["r1"]))
    after = content(secret)
    assert after[0] == [row for row in before[0] if row[0].request_id != "r1"]
    assert after[1] == [row for row in before[1] if row.request.request_id != "r1"]
    assert after[2] == [row for row in before[2] if row.request_id != "r1"]
    assert not any(CANARY.encode() in path.read_bytes() for path in secret.iterdir())


def test_an_export_is_in_the_clear(secret: Path) -> None:
    export(secret, secret.with_name("out"), "csv")
    assert CANARY in (secret.with_name("out") / "requests.csv").read_text()


def test_what_a_crash_leaves_is_encrypted(tmp_path: Path) -> None:
    path = write_turns(tmp_path / "r", text=CANARY, encrypted=True, close=False)
    assert not Recording.open(path).complete
    assert not any(CANARY.encode() in one.read_bytes() for one in path.iterdir())


@given(
    st.binary(max_size=200),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace").decode("utf-8")),
    st.integers(0, 10**9),
)
def test_whatever_is_closed_opens_in_its_own_place_only(
    data: bytes, line: str, number: int
) -> None:
    cipher = AesSiv(os.urandom(KEY_BYTES), "recording")
    assert cipher.open_file("a", cipher.file("a", data), "w") == data
    closed = cipher.line("a", number, line)
    assert closed.isascii()
    assert "\n" not in closed
    assert cipher.open_line("a", number, closed, "w") == line
    for name, place in (("b", number), ("a", number + 1)):
        with pytest.raises(RecordingError, match="w: damaged"):
            cipher.open_line(name, place, closed, "w")


def test_keys_are_read_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, f" {KEY} , {OTHER}, ")
    assert recording_keys() == [bytes.fromhex(KEY), bytes.fromhex(OTHER)]


def test_a_start_that_is_to_encrypt_without_a_key_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RecordSettings(str(tmp_path), encrypt=True)
    check_recording(settings)
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(ConfigurationError, match="openssl rand"):
        check_recording(settings)


def test_doctor_tells_whether_recordings_are_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(record=RecordSettings(str(tmp_path), encrypt=True))
    assert {one.state for one in places(settings) if one.name == "encryption"} == {"ok"}
    monkeypatch.setenv(KEY_VARIABLE, "short")
    assert {one.state for one in places(settings) if one.name == "encryption"} == {"fault"}
