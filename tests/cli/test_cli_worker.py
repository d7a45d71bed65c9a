"""``worker``: a process of its own decodes for a server that only captures."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Cli = Callable[..., Any]
Config = Callable[..., str]


def sections(tmp_path: Path, **ipc: Any) -> dict[str, Any]:
    endpoint = f"ipc://{tmp_path}/run/w.sock"
    return {
        "capture": {"placement": "ipc"},
        "ipc": {"endpoints": [endpoint], "connect_s": 120, "liveness_s": 60, **ipc},
        "record": {"dir": str(tmp_path / "recordings")},
    }


@contextmanager
def running_worker(config: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "nae_monitor", "worker", "-c", config, *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("worker: ready at ipc://"):
                break
        else:
            raise AssertionError("the worker ended before it was ready")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_generation_is_judged_alerted_and_recorded_by_the_worker(
    cli: Cli, config: Config, prompts: Path, tmp_path: Path
) -> None:
    path = config(**sections(tmp_path))
    with running_worker(path) as worker:
        done = cli("doctor", "-c", path, "--json")
        (check,) = [one for one in done.objects[0]["checks"] if one["name"] == "worker"]
        assert check["state"] == "ok"
        done = cli("generate", "-c", path, "-p", prompts, "--max-new-tokens", "6", "--json")
        assert done.code == 0, done.err
        assert [one["verdict"]["state"] for one in done.objects] == ["alert", "alert"]
        assert all(one["verdict"]["coverage_tokens"]["judged"] for one in done.objects)
        worker.send_signal(signal.SIGTERM)
        _, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
        assert "Anything at all" in err  # the console sink is the worker's
    (recording,) = (tmp_path / "recordings").iterdir()  # sealed: the worker ended in order
    assert cli("replay", recording, "-c", path, "-o", tmp_path / "again").code in (0, 1)


def test_without_a_worker_doctor_and_generate_say_how_to_start_one(
    cli: Cli, config: Config, prompts: Path, tmp_path: Path
) -> None:
    path = config(**sections(tmp_path, connect_s=0.1))
    done = cli("doctor", "-c", path)
    assert done.code == 2
    assert "start it: nae-monitor worker" in done.out
    done = cli("generate", "-c", path, "-p", prompts)
    assert done.code == 2
    assert "no worker has answered yet" in done.err


def test_a_worker_needs_a_placement_that_has_workers(cli: Cli, config: Config) -> None:
    done = cli("worker", "-c", config())
    assert done.code == 2
    assert "capture.placement" in done.err


def test_every_fault_of_a_worker_is_named_at_once(
    cli: Cli, config: Config, tmp_path: Path, rule: Path
) -> None:
    rule.write_text("title: x")
    found = sections(tmp_path)
    found["target"] = {"model": str(tmp_path / "none")}
    done = cli("worker", "-c", config(**found), "--number", "3")
    assert done.code == 2
    assert all(word in done.err for word in ("endpoint number 3", "none", "anything.yaml"))


def test_record_refuses_where_the_workers_write_the_recording(
    cli: Cli, config: Config, prompts: Path, tmp_path: Path
) -> None:
    path = config(**sections(tmp_path))
    done = cli("record", "-c", path, "-p", prompts, "-o", tmp_path / "rec")
    assert done.code == 2
    assert "workers write" in done.err
