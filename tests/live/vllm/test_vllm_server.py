"""An unchanged OpenAI server, switched on by one variable; what it recorded is read afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_live import TOLERANCE, environment, reference, write_configuration

from nae_monitor.models import resolve_target
from nae_monitor.recording import Recording

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]
TRACE = "0af7651916cd43dd8448eb211c80319c"


@dataclass(frozen=True)
class Served:
    """What two clients got, and what was recorded beside it."""

    texts: dict[str, str]
    requests: dict[str, Any]  # recorded, by the client's id
    rows: dict[str, dict[int, torch.Tensor]]
    alerts: list[dict[str, Any]]


def ask(port: int, name: str, texts: dict[str, str]) -> None:
    """One streaming chat."""
    body = {
        "model": "smol",
        "messages": [{"role": "user", "content": f"Tell me about {name}."}],
        "max_tokens": 24, "temperature": 0, "stream": True,
        "vllm_xargs": {"nae_tenant": "rival", "nae_monitor": "forged"},
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
    text = ""
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                choice = json.loads(line[6:])["choices"]
                text += choice[0]["delta"].get("content") or "" if choice else ""
    texts[name] = text


def wait_until_up(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)


def wait_for_alerts(path: Path, count: int) -> None:
    """A server that is told to end gives the monitor a few seconds only."""
    while not path.exists() or len(path.read_text().splitlines()) < count:
        time.sleep(0.5)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("server")
    write_configuration(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(resolve_target("smollm2-135m-instruct")), "--served-model-name", "smol",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "512",
        "--block-size", "32", "--enforce-eager", "--shutdown-timeout", "60",
        "--enable-request-id-headers",
    ]  # fmt: skip
    variables = environment(folder / "monitor.yaml", VLLM_ENABLE_V1_MULTIPROCESSING="1")
    with log.open("wb") as out:
        server = subprocess.Popen(command, env=variables, stdout=out, stderr=out)
    texts: dict[str, str] = {}
    try:
        wait_until_up(port, server, log)
        clients = [
            threading.Thread(target=ask, args=(port, name, texts)) for name in ("rain", "foxes")
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        ask(port, "end", texts)
        wait_for_alerts(folder / "alerts.jsonl", 3)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(90)
        except subprocess.TimeoutExpired:
            os.kill(server.pid, signal.SIGKILL)
    assert len(texts) == 3, log.read_text()[-4000:]
    recordings = list((folder / "recordings").iterdir())
    assert len(recordings) == 1, log.read_text()[-4000:]
    recording = Recording.open(recordings[0])
    rows: dict[str, dict[int, torch.Tensor]] = {}
    for recorded in recording.activations():
        activation = recorded.activation
        rows.setdefault(activation.request.group_id, {})[activation.position] = activation.vector
    alerts = (folder / "alerts.jsonl").read_text().splitlines()
    return Served(
        texts,
        {record.request.group_id: record for record in recording.requests()},
        rows,
        [json.loads(line) for line in alerts],
    )


@pytest.mark.parametrize("name", ["rain", "foxes", "end"])
def test_the_clients_ids_tenant_session_and_span_reach_the_monitor(
    served: Served, name: str
) -> None:
    request = served.requests[f"client-{name}"].request
    assert request.request_id.startswith(f"chatcmpl-client-{name}-")
    assert (request.tenant, request.session_id) == (f"tenant-{name}", f"session-{name}")
    assert request.trace.trace_id == int(TRACE, 16)


@pytest.mark.parametrize("name", ["rain", "foxes", "end"])
def test_the_text_on_record_is_what_the_client_was_streamed(served: Served, name: str) -> None:
    record = served.requests[f"client-{name}"]
    assert record.output_text.replace("<|im_end|>", "") == served.texts[name]


@pytest.mark.parametrize("name", ["rain", "foxes", "end"])
def test_recorded_rows_are_the_hidden_states(served: Served, name: str) -> None:
    record = served.requests[f"client-{name}"]
    states = reference([*record.prompt_token_ids, *record.output_token_ids])
    rows = served.rows[f"client-{name}"]
    assert len(rows) > 16
    for position, vector in rows.items():
        error = torch.linalg.vector_norm(vector - states[position])
        assert error / torch.linalg.vector_norm(states[position]) < TOLERANCE


def test_alerts_left_the_engines_process(served: Served) -> None:
    assert len(served.alerts) == 3
