"""An unchanged OpenAI server in a process of its own, and its streaming clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_live import environment

from nae_monitor.models import resolve_target

TRACE = "0af7651916cd43dd8448eb211c80319c"


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    port: int
    pid: int
    log: Path

    @property
    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text()[-4000:]


@dataclass(frozen=True)
class Completion:
    """What one client was streamed."""

    text: str
    ended: str  # finish_reason


@contextmanager
def serving(folder: Path, *more: str) -> Iterator[Server]:
    """A server with ``folder/monitor.yaml``; it is told to end, and given time to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(resolve_target("smollm2-135m-instruct")), "--served-model-name", "smol",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "512",
        "--block-size", "32", "--enforce-eager", "--shutdown-timeout", "60",
        "--enable-request-id-headers", *more,
    ]  # fmt: skip
    variables = environment(folder / "monitor.yaml", VLLM_ENABLE_V1_MULTIPROCESSING="1")
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=variables, stdout=out, stderr=out)
    server = Server(port, process.pid, log)
    try:
        _wait_until_up(server, process)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)


def _wait_until_up(server: Server, process: subprocess.Popen[bytes]) -> None:
    while True:
        assert process.poll() is None, server.said
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)


def chat(
    port: int, name: str, content: str, heard: Callable[[], Any] = int, **asked: Any
) -> Completion:
    """One streaming chat; ``heard`` is called at each piece of text."""
    body = {
        "model": "smol", "messages": [{"role": "user", "content": content}],
        "max_tokens": 24, "temperature": 0, "stream": True,
        "vllm_xargs": {"nae_tenant": "rival", "nae_monitor": "forged"}, **asked,
    }  # fmt: skip
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={
            "Content-Type": "application/json", "X-Request-Id": f"client-{name}",
            "X-Tenant-Id": f"tenant-{name}", "X-Session-Id": f"session-{name}",
            "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
        },
    )  # fmt: skip
    text = ended = ""
    with urllib.request.urlopen(request, timeout=300) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
                    ended = choice.get("finish_reason") or ended
                    heard()
    return Completion(text, ended)
