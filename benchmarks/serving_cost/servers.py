"""vLLM servers of one comparison, each in a folder of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.screen import Directions, write_directions

START_S, STOP_S = 600.0, 60.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers, and the process group it leads."""

    port: int
    pid: int

    def memory_mb(self) -> float:
        """Memory of its own of all its processes (proportional set size)."""
        return sum(_pss_mb(pid) for pid in _group(self.pid))


def write_configuration(folder: Path, directions: Directions, decodes_per_s: float) -> Path:
    """``monitor.yaml`` of a server that screens every token and ships rows to a worker."""
    write_directions(folder / "screen.safetensors", directions)
    content = {
        "target": {"model": "smollm2-135m-instruct"},
        "capture": {"placement": "ipc"},
        "ipc": {"endpoints": [f"ipc://{folder}/worker.sock"]},
        "screen": {
            "directions": str(folder / "screen.safetensors"),
            "random_share": 0.5,
            "budget": {"decodes_per_s": decodes_per_s, "per_request": 1_000},
        },
        "detect": {"encoder": None},
        "alert": {"sinks": [{"jsonl": str(folder / "alerts.jsonl")}]},
    }
    path = folder / "monitor.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@contextmanager
def servers(
    python: Path, model: Path, variables: Mapping[str, Mapping[str, str]], folder: Path, eager: bool
) -> Iterator[dict[str, Server]]:
    """One vLLM server for each set of environment variables, started one after the other.

    Raises:
        ConfigurationError: one does not start; its log is named.
    """
    with ExitStack() as running:
        found = {}
        for number, (name, more) in enumerate(variables.items()):
            place = folder / f"server-{number}"
            place.mkdir()
            found[name] = running.enter_context(_server(python, model, more, place, eager))
        yield found


@contextmanager
def _server(
    python: Path, model: Path, more: Mapping[str, str], folder: Path, eager: bool
) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "smol", "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--max-model-len", "512", "--block-size", "32",
        "--no-enable-prefix-caching", "--shutdown-timeout", "30",
        *(["--enforce-eager"] if eager else []),
    ]  # fmt: skip
    environment = {
        **{k: v for k, v in os.environ.items() if k != "NAE_MONITOR_CONFIG"},
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", **more,
    }  # fmt: skip
    log = folder / "server.log"
    with _process(command, environment, log) as process:
        _until(lambda: _answers(port), process, log)
        yield Server(port, process.pid)


@contextmanager
def _process(
    command: Sequence[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _until(condition: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + START_S
    while not condition():
        if process.poll() is not None or time.monotonic() > end_s:
            tail = log.read_text(encoding="utf-8", errors="replace")[-2_000:]
            raise ConfigurationError([Problem(Mark(str(log)), f"it did not start:\n{tail}", "")])
        time.sleep(0.2)


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
    except OSError:
        return False
    return True


def _group(leader: int) -> list[int]:
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and os.getpgid(int(place.name)) == leader:
                found.append(int(place.name))
        except OSError:
            continue
    return found


def _pss_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
