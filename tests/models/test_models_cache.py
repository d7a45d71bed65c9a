from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nae_monitor.errors import ModelError
from nae_monitor.models import cache_directory
from nae_monitor.models.cache import build_once, is_whole

BUILDER = """
import sys, time
from pathlib import Path
from nae_monitor.models.cache import build_once
target, log, ready = map(Path, sys.argv[1:4])
def build(folder):
    with log.open("a") as stream: stream.write("built\\n")
    for n in range(5):
        (folder / f"part{n}").write_text("x" * 1000)
        time.sleep(0.05)
print("ready", flush=True)
sys.stdin.readline()
build_once(target, build)
print(sorted(p.name for p in target.glob("part*")))
"""


def _write(text: str):
    return lambda folder: (folder / "weights").write_text(text)


def test_cache_directory_follows_the_environment(cache: Path) -> None:
    assert cache_directory() == cache


def test_cache_directory_is_the_users_cache_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NAE_MONITOR_CACHE", raising=False)
    assert cache_directory().name == "nae_monitor"


def test_two_processes_build_one_directory_once(tmp_path: Path) -> None:
    target, log = tmp_path / "cache" / "model", tmp_path / "log"
    command = [sys.executable, "-c", BUILDER, str(target), str(log), str(tmp_path)]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert log.read_text() == "built\n"
    assert outputs == [str([f"part{n}" for n in range(5)]) + "\n"] * 2


def test_a_process_killed_while_building_leaves_nothing_half_done(tmp_path: Path) -> None:
    target, log = tmp_path / "cache" / "model", tmp_path / "log"
    script = BUILDER.replace("time.sleep(0.05)", "print('writing', flush=True); time.sleep(60)")
    command = [sys.executable, "-c", script, str(target), str(log), str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "writing\n"]
    process.kill()
    process.communicate(timeout=240)
    assert not target.exists()
    build_once(target, _write("whole"))
    assert (target / "weights").read_text() == "whole"
    assert not list(target.parent.glob("*.partial"))


def test_a_build_that_fails_leaves_no_directory(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "model", fail)
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob(".model.*.partial"))


def test_a_whole_directory_is_not_built_again(tmp_path: Path) -> None:
    build_once(tmp_path / "model", _write("first"))
    build_once(tmp_path / "model", _write("second"))
    assert (tmp_path / "model" / "weights").read_text() == "first"


@pytest.mark.parametrize("damage", ["truncate", "change", "delete", "no manifest", "bad manifest"])
def test_a_damaged_directory_is_rebuilt(tmp_path: Path, damage: str) -> None:
    target = build_once(tmp_path / "model", _write("whole"))
    weights, manifest = target / "weights", target / "nae_manifest.json"
    match damage:
        case "truncate":
            os.truncate(weights, 2)
        case "change":
            weights.write_text("whol3")
        case "delete":
            weights.unlink()
        case "no manifest":
            manifest.unlink()
        case _:
            manifest.write_text("[1")
    assert not is_whole(target)
    build_once(target, _write("whole"))
    assert weights.read_text() == "whole"
    assert is_whole(target)


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match=r"No space left on device.*NAE_MONITOR_CACHE"):
        build_once(tmp_path / "model", fail)


def test_a_cache_place_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        build_once(tmp_path / "file" / "model", _write("x"))
