"""A process that ends in the middle of a decode ends as it would have without a monitor."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_nla
from test_cli_worker import running_worker, sections

from nae_monitor.recording import Recording

Cli = Callable[..., Any]
Config = Callable[..., str]

HOST = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from nae_monitor import Monitor

monitor = Monitor.from_yaml(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
with monitor.watch(model, tokenizer):
    model.generate(**tokenizer("dogs and cats", return_tensors="pt"), max_new_tokens=4)
sys.exit(int(sys.argv[3]))
"""


@pytest.fixture
def endless(tiny: Any, tmp_path: Path) -> dict[str, Any]:
    """Settings of a pair that would write for minutes."""
    av = tiny_nla.write_endless(tiny.av, tmp_path / "endless-av")
    return {"av": str(av), "max_new_tokens": 100_000}


@pytest.mark.parametrize("code", [0, 3])
def test_a_host_that_ends_in_mid_decode_ends_with_its_own_code(
    config: Config, tiny: Any, endless: dict[str, Any], code: int
) -> None:
    path = config(nla=endless)
    done = subprocess.run(
        [sys.executable, "-c", HOST, path, str(tiny.target), str(code)],
        stderr=subprocess.PIPE,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stderr


def test_a_host_does_not_wait_for_a_decode_server_that_never_answers(
    config: Config, tiny: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        path = config(nla={"engine": f"vllm:{url}", "timeout_s": 3_600})
        done = subprocess.run(
            [sys.executable, "-c", HOST, path, str(tiny.target), "0"],
            stderr=subprocess.PIPE,
            text=True,
            timeout=240,  # of the hour that the decode would take
            check=False,
        )
        silent.settimeout(1)
        connection, _ = silent.accept()  # it was asked
        connection.close()
    assert done.returncode == 0, done.stderr


def test_a_worker_told_to_end_in_mid_decode_says_what_is_left_and_ends_with_one(
    cli: Cli, config: Config, prompts: Path, endless: dict[str, Any], tmp_path: Path
) -> None:
    path = config(nla=endless, **sections(tmp_path))
    with running_worker(path, "--deadline-s", "0.2") as worker:
        done = cli(
            "generate", "-c", path, "-p", prompts, "--max-new-tokens", "2", "--wait-s", "0.5",
            "--json",
        )  # fmt: skip
        assert {one["verdict"]["state"] for one in done.objects} == {"undecided"}
        worker.send_signal(signal.SIGTERM)
        _, err = worker.communicate(timeout=120)
    assert worker.returncode == 1, err
    assert "not everything was worked off" in err
    (recording,) = (tmp_path / "recordings").iterdir()  # sealed, with what was lost in it
    recorded = Recording.open(recording)
    assert recorded.complete
    lost = [one.coverage.dropped_tokens for one in recorded.requests()]
    assert lost == [{"shutdown": 4}] * 2
