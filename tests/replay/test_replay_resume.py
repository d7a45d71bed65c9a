"""A replay that is broken off, in whatever way, goes on and ends in the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from replay_demo_run import write_demo_run
from replay_scenario import WordJudge, replayed

from nae_monitor.errors import ConfigurationError, EngineError
from nae_monitor.recording import Recording, RecordingWriter
from nae_monitor.recording.encryption import KEY_BYTES, KEY_VARIABLE
from nae_monitor.records import VerdictState

HERE = Path(__file__).parent


def files(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 200 rows of ten conversations."""
    path = tmp_path_factory.mktemp("resume") / "live"
    write_demo_run(path, conversations=10, every=4)
    return path


@pytest.fixture(scope="module")
def whole(live: Path) -> dict[str, bytes]:
    """The run that nothing broke off."""
    replayed(live, live.with_name("whole"))
    return files(live.with_name("whole"))


def test_the_same_replay_gives_the_same_bytes(
    live: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    replayed(live, tmp_path / "run", delay_s=0.001)
    assert files(tmp_path / "run") == whole
    assert {"manifest.json", "seals.jsonl", "findings.jsonl", "alerts.jsonl"} < set(whole)
    assert not any(name.startswith(".") for name in whole)


@pytest.mark.parametrize("after", [1, 7, 16])
@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_a_replay_that_was_broken_off_goes_on(
    live: Path, whole: dict[str, bytes], tmp_path: Path, after: int, how: type[BaseException]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(how):
        replayed(live, run, fails={after: how})
    assert not Recording.open(run).complete
    calls = replayed(live, run)
    assert calls[0] == after  # what was judged before is neither decoded nor judged again
    assert files(run) == whole


@pytest.mark.parametrize(
    ("after_parts", "kind"), [(0, signal.SIGKILL), (20, signal.SIGKILL), (3, signal.SIGINT)]
)
def test_a_killed_process_goes_on(
    live: Path, whole: dict[str, bytes], tmp_path: Path, after_parts: int, kind: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, str(HERE / "replay_scenario.py"), str(live), str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    for number, _ in enumerate(process.stdout):
        if number >= after_parts:
            break
    process.send_signal(kind)
    process.wait()
    process.stdout.close()
    assert process.returncode != 0
    replayed(live, run)
    assert files(run) == whole


def test_a_replay_that_met_a_full_disk_goes_on(
    live: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, str(HERE / "replay_scenario.py"), str(live), str(run), "9000"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode != 0
    assert "OSError" in done.stderr
    assert str(run) in done.stderr.splitlines()[-1]  # the file that could not grow
    assert replayed(live, run)[0] == len(done.stdout.splitlines()) > 0
    assert files(run) == whole


@pytest.mark.parametrize("damage", ["flip", "cut", "more"])
def test_damaged_progress_is_judged_again(
    live: Path, whole: dict[str, bytes], tmp_path: Path, damage: str
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        replayed(live, run, fails={12: KeyboardInterrupt})
    journal = run / ".resume" / "judged.jsonl"
    data = bytearray(journal.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
    journal.write_bytes({"flip": data, "cut": data[:-7], "more": data + b"half a li"}[damage])
    calls = replayed(live, run)
    assert calls[0] == 12 if damage == "more" else calls[0] < 12
    assert files(run) == whole


def test_another_replay_does_not_go_on_with_it(live: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        replayed(live, run, fails={3: KeyboardInterrupt})
    with pytest.raises(ConfigurationError, match="had other manifest"):
        replayed(live, run, manifest={"rules_sha256": "other"})
    with pytest.raises(ConfigurationError, match="had other options"):
        replayed(live, run, batch_size=3)
    other = tmp_path / "other"
    write_demo_run(other, conversations=2)
    with pytest.raises(ConfigurationError, match="had other recordings"):
        replayed(other, run)
    assert replayed(live, run)


def test_a_recording_of_another_kind_is_never_touched(live: Path, tmp_path: Path) -> None:
    crashed = RecordingWriter(tmp_path / "run", manifest={}, d_model=4, content="none")
    crashed.abandon()
    before = files(tmp_path / "run")
    with pytest.raises(ConfigurationError, match="already holds a recording"):
        replayed(live, tmp_path / "run")
    assert files(tmp_path / "run") == before


def test_two_replays_never_write_the_same_run(live: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    class Nested(WordJudge):
        def judge(self, *row: object) -> tuple:  # type: ignore[override, type-arg]
            with pytest.raises(ConfigurationError, match="another replay is writing it"):
                replayed(live, run)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replayed(live, run, judge=Nested())


def test_rows_that_a_dying_decoder_failed_on_are_decoded_by_the_next_start(
    live: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    dead = dict.fromkeys(range(8, 100), TimeoutError)
    with pytest.raises(EngineError, match="five batches in a row"):
        replayed(live, run, fails=dead)
    replayed(live, run)
    assert files(run) == whole
    assert VerdictState.ALERT in {one.state for one in Recording.open(run).requests()}


def test_no_withheld_text_is_in_what_is_kept_on_the_way(live: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        replayed(live, run, fails={9: KeyboardInterrupt}, content="hash", hmac_key=b"key")
    kept = (run / ".resume" / "judged.jsonl").read_bytes()
    assert kept.count(b'"rule_id"') > 0
    assert b"about " not in kept
    replayed(live, run, content="hash", hmac_key=b"key")
    replayed(live, tmp_path / "whole", content="hash", hmac_key=b"key")
    assert files(run) == files(tmp_path / "whole")


def test_the_replay_of_an_encrypted_recording_is_encrypted_on_the_way_and_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "ab" * KEY_BYTES)
    live, run = tmp_path / "live", tmp_path / "run"
    write_demo_run(live, conversations=4, every=4, encrypted=True)
    with pytest.raises(KeyboardInterrupt):
        replayed(live, run, fails={9: KeyboardInterrupt})
    assert (run / ".resume" / "judged.jsonl").stat().st_size > 0
    assert not any(b"about " in data or b"rule_name" in data for data in files(run).values())
    replayed(live, run)
    replayed(live, tmp_path / "whole")
    assert files(run) == files(tmp_path / "whole")
    assert not any(b"about " in data for data in files(run).values())
    assert Recording.open(run).encrypted
    assert list(Recording.open(run).findings())


def test_files_that_no_run_made_are_left_alone(
    live: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "mine.jsonl").write_text("mine")
    (run / "mine.parquet.txt").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        replayed(live, run, fails={3: KeyboardInterrupt})
    replayed(live, run)
    assert files(run) == {**whole, "mine.jsonl": b"mine", "mine.parquet.txt": b"mine"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "findings.jsonl").write_text("mine")
    with pytest.raises(ConfigurationError, match="already holds a recording"):
        replayed(live, tmp_path / "other")
