"""``replay``, ``report`` and ``nla decode`` over a recording made by ``record``."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nae_monitor.recording import Recording, RecordingWriter

Cli = Callable[..., Any]
Config = Callable[..., str]


def test_the_same_configuration_finds_the_same(
    cli: Cli, config: Config, recording: Path, tmp_path: Path
) -> None:
    done = cli(
        "replay",
        recording,
        "-c",
        config(),
        "-o",
        tmp_path / "run",
        "--against",
        recording,
        "--json",
    )
    assert done.code == 0, done.err
    (summary,) = done.objects
    assert summary["rows"] == summary["judged"] == summary["reused"] == 8
    assert summary["comparison"]["identical"]
    live, again = (
        (path / "findings.jsonl").read_bytes().splitlines()
        for path in (recording, tmp_path / "run")
    )
    assert sorted(live) == sorted(again)


def test_decoding_again_gives_the_same_texts(
    cli: Cli, config: Config, recording: Path, tmp_path: Path
) -> None:
    done = cli(
        "replay", recording, "-c", config(), "-o", tmp_path / "run", "--redecode",
        "--batch-size", "3", "--against", recording,
    )  # fmt: skip
    assert done.code == 0, done.out
    assert "8 decoded now" in done.out
    assert "compared: 8 the same, 0 new, 0 gone, 0 changed" in done.out


def test_other_rules_find_other_things_and_exit_with_one(
    cli: Cli, config: Config, recording: Path, rule: Path, tmp_path: Path
) -> None:
    rule.write_text(rule.read_text().replace("severity: low", "severity: high"))
    done = cli("replay", recording, "-c", config(), "-o", tmp_path / "run", "--against", recording)
    assert done.code == 1
    assert "8 changed" in done.out
    assert "anything high match" in done.out


def test_only_rows_that_a_filter_lets_through_are_judged_and_nothing_is_decoded(
    cli: Cli, config: Config, recording: Path, tmp_path: Path
) -> None:
    first = next(Recording.open(recording).requests()).request.request_id
    done = cli(
        "replay", recording, "-c", config(), "-o", tmp_path / "run", "--rescore", "--json",
        "--where", f"request = {first} and rule = anything", "--against", recording,
    )  # fmt: skip
    assert done.code == 0, done.err
    (summary,) = done.objects
    assert summary["rows"] == summary["reused"] == 4
    assert summary["comparison"]["same"] == 4
    rates = {(one["by"], one["value"]): one for one in summary["comparison"]["rates"]}
    assert rates["rule", "anything"]["after"]["matched_requests"] == 1
    assert rates["all", ""]["before"]["requests"] == 1


def test_an_interrupted_replay_says_how_to_go_on_and_does(
    cli: Cli, config: Config, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("replay", recording, "-c", config(), "-o", tmp_path / "run")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RecordingWriter, "write_request", interrupt)
        stopped = cli(*command)
    assert stopped.code == 130
    assert "give the same command again" in stopped.err
    done = cli(*command, "--against", recording)
    assert done.code == 0, done.err
    assert "8 the same" in done.out
    assert not (tmp_path / "run" / ".resume").exists()


def test_a_disk_that_is_full_in_mid_run_is_told_by_the_file_and_how_to_go_on(
    cli: Cli, config: Config, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("replay", recording, "-c", config(), "-o", tmp_path / "run")

    sync = os.fsync

    def full(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "seals.jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        stopped = cli(*command)
    assert stopped.code == 2
    assert "No space left on device" in stopped.err
    assert str(tmp_path / "run" / "seals.jsonl") in stopped.err.replace("\n", "")
    assert "give the same command again" in stopped.err
    assert cli(*command, "--against", recording).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--where", "colour = red"], "--where:1:1: expected a field"),
        (["--redecode", "--rescore"], "give one of"),
    ],
)
def test_bad_options_are_bad_usage(
    cli: Cli, recording: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    done = cli("replay", recording, "-o", tmp_path / "run", *options)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "run").exists()


def test_a_report_is_one_html_file(cli: Cli, recording: Path, tmp_path: Path) -> None:
    done = cli("report", recording, "-o", tmp_path / "r.html")
    assert done.code == 0
    assert "report: " in done.out
    page = (tmp_path / "r.html").read_text()
    assert "Anything at all" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_vectors_of_a_recording_decode_to_what_was_recorded(
    cli: Cli, recording: Path, tiny: Any
) -> None:
    done = cli(
        "nla", "decode", recording, "--av", tiny.av, "--ar", tiny.ar, "--limit", "3", "--json"
    )
    assert done.code == 0, done.err
    assert len(done.objects) == 3
    live = list(Recording.open(recording).activations())[:3]
    for row, recorded in zip(done.objects, live, strict=True):
        assert recorded.decoding is not None
        assert row["explanation"].startswith(recorded.decoding.text[:4])  # 8 tokens were recorded
        assert -1 <= row["cosine"] <= 1
        assert row["bank_size"] == 256


def test_positions_of_a_prompt_are_decoded(cli: Cli, tiny: Any) -> None:
    pair = ("--av", tiny.av, "--ar", tiny.ar, "--target", tiny.target)
    done = cli("nla", "decode", "--prompt", "dogs", "--position", "3", "--position", "-1", *pair)
    assert done.code == 0, done.err
    assert done.out.count("FVE") == 2
    assert "rank" in done.out
    beyond = cli("nla", "decode", "--prompt", "dogs", "--position", "999", *pair)
    assert beyond.code == 2
    assert "--position 999: the prompt has" in beyond.err
