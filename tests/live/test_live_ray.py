"""Replay on Ray: the bytes of a local run, whoever is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "replay"))

from replay_demo_run import write_demo_run  # noqa: E402
from replay_scenario import replayed  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.timeout(280)]


def files(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def on_ray(tmp_path: Path, stop_after_parts: int) -> subprocess.CompletedProcess[str]:
    places = (tmp_path / name for name in ("live", "run", "mark"))
    return subprocess.run(
        [sys.executable, HERE / "ray_replay.py", *places, str(stop_after_parts)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "RAY_AUTH_MODE": "disabled",  # else a token is written to the home directory
            "RAY_USAGE_STATS_ENABLED": "0",
        },
    )


def test_a_killed_worker_and_a_killed_driver_change_no_byte(tmp_path: Path) -> None:
    write_demo_run(tmp_path / "live", conversations=10, every=4)
    replayed(tmp_path / "live", tmp_path / "here")
    killed = on_ray(tmp_path, stop_after_parts=12)
    assert killed.returncode == -9, killed.stderr
    assert (tmp_path / "mark").exists()  # where the first worker died
    kept = (tmp_path / "run" / ".resume" / "judged.jsonl").read_bytes()
    assert kept.count(b"\n") >= 12
    done = on_ray(tmp_path, stop_after_parts=0)
    assert done.stdout.strip() == "whole", done.stderr
    assert files(tmp_path / "run") == files(tmp_path / "here")
