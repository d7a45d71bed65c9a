"""``record erase`` and ``record export`` over a recording made by ``record``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nae_monitor.errors import ConfigurationError
from nae_monitor.recording import Recording
from nae_monitor.recording.encryption import KEY_BYTES, KEY_VARIABLE

Cli = Callable[..., Any]


def test_an_erased_request_is_gone_and_the_rest_replays(
    cli: Cli, config: Callable[..., str], recording: Path, tmp_path: Path
) -> None:
    first, second = [one.request.request_id for one in Recording.open(recording).requests()]
    told = cli("record", "erase", recording.parent, "--request", first, "--dry-run", "--json")
    assert told.code == 0, told.err
    assert first in (recording / "findings.jsonl").read_text()
    done = cli("record", "erase", recording.parent, "--request", first, "--json")
    assert done.objects[0] == {**told.objects[0], "dry_run": False}
    assert done.objects[0]["requests"] == 1
    assert all(first.encode() not in file.read_bytes() for file in recording.iterdir())
    again = cli("replay", recording, "-c", config(), "-o", tmp_path / "run", "--against", recording)
    assert again.code == 0, again.err
    assert [one.request.request_id for one in Recording.open(recording).requests()] == [second]


def test_old_requests_go_and_new_ones_stay(cli: Cli, recording: Path) -> None:
    done = cli("record", "erase", recording, "--older-than", "1h")
    assert (done.code, done.err) == (0, "")
    assert "erased 0 requests" in done.out
    time.sleep(0.01)
    done = cli("record", "erase", recording, "--older-than", "0h")
    assert "erased 2 requests" in done.out
    assert list(Recording.open(recording).activations()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what is to go"),
        (["--older-than", "soon"], "such as 30d"),
        (["--older-than", "-1d"], "such as 30d"),
    ],
)
def test_an_erasure_that_names_nothing_is_bad_usage(
    cli: Cli, recording: Path, arguments: list[str], message: str
) -> None:
    done = cli("record", "erase", recording, *arguments)
    assert done.code == 2
    assert message in done.err


def test_what_is_no_recording_is_bad_data(cli: Cli, tmp_path: Path) -> None:
    done = cli("record", "erase", tmp_path, "--tenant", "acme")
    assert done.code == 3
    assert "only recordings can be erased from" in done.err


def test_what_the_configuration_encrypts_is_recorded_encrypted(
    cli: Cli,
    config: Callable[..., str],
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "5a" * KEY_BYTES)
    path = config(record={"encrypt": True})
    done = cli(
        "record", "-c", path, "-p", prompts, "-o", tmp_path / "rec", "--json",
        "--max-new-tokens", "6",
    )  # fmt: skip
    assert done.code == 0, done.err
    where = Path(done.objects[-1]["recording"])
    opened = Recording.open(where)
    assert opened.encrypted
    request_ids = [one.request.request_id for one in opened.requests()]
    assert len(request_ids) == 2
    sensitive = [*request_ids, "dogs", "harmful", "Anything at all", "PAR1"]
    for file in where.iterdir():
        data = file.read_bytes()
        assert not any(text.encode() in data for text in sensitive), file.name


def test_a_recording_that_cannot_be_encrypted_is_not_begun(
    cli: Cli,
    config: Callable[..., str],
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    path = config(record={"encrypt": True})
    done = cli("record", "-c", path, "-p", prompts, "-o", tmp_path / "rec")
    assert done.code == ConfigurationError.exit_code
    assert (done.out, "there is no key" in done.err) == ("", True)
    assert not (tmp_path / "rec").exists()


def test_recording_needs_a_directory(cli: Cli) -> None:
    done = cli("record")
    assert done.code == 2
    assert "--out DIR" in done.err


def test_tables_are_written_and_counted(cli: Cli, recording: Path, tmp_path: Path) -> None:
    done = cli("record", "export", recording, "-o", tmp_path / "t", "--format", "json", "--json")
    assert done.code == 0, done.err
    rows = {Path(one["file"]).stem: one["rows"] for one in done.objects}
    assert rows == {"requests": 2, "activations": 8, "findings": 8}
    line = (tmp_path / "t" / "findings.json").read_text().splitlines()[0]
    assert json.loads(line)["rule_name"] == "anything"
