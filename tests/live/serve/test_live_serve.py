"""``transformers serve --continuous-batching`` over HTTP; what was recorded is read afterwards."""

from __future__ import annotations

import json
import os
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

from nae_monitor.models import load_target, resolve_target
from nae_monitor.recording import Recording

pytest.importorskip("fastapi", reason="transformers[serving] is not installed")
pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

LAYER = 20
TOLERANCE = 2e-5  # of a row's length; float32 on both sides
NAMES = ("rain", "foxes")
# Every row recorded, an alert for every request; decodes are as short as they may be.
CONFIG = """
capture: {{min_position: 0, vector_dtype: float32}}
nla: {{max_new_tokens: 4, batch_size: 32}}
screen: {{every_n_tokens: 1, expire_s: 3600, budget: {{decodes_per_s: 1000, per_request: 10000}}}}
detect: {{rules: [{folder}/rule.yaml], encoder: null}}
alert: {{sinks: [{{jsonl: {folder}/alerts.jsonl}}]}}
record: {{dir: {folder}/recordings}}
privacy: {{content: full}}
"""
RULE = """
schema_version: 1
title: Anything at all
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e78
name: anything
version: 1
status: stable
severity: high
description: Matches every prompt, so that an alert must come.
author: tests
date: 2026-01-01
tags: [tests.serve]
scope: {phase: [prompt, completion], min_token_index: 0}
detection:
  any: {field: prompt, regex: ['(?s).']}
  condition: any
"""


@dataclass(frozen=True)
class Served:
    """What clients got, and what was recorded beside it, by the client's request id."""

    texts: dict[str, str]
    requests: dict[str, Any]
    rows: dict[str, dict[int, torch.Tensor]]
    alerts: list[dict[str, Any]]


def ask(port: int, name: str, texts: dict[str, str], leave_after: int | None = None) -> None:
    """One streaming chat; a client may hang up after so many pieces."""
    body = {
        "messages": [{"role": "user", "content": f"Tell me about {name}."}],
        "model": str(resolve_target("smollm2-135m-instruct")),
        "max_tokens": 400 if leave_after else 16, "temperature": 0, "stream": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "X-Request-Id": name},
    )
    pieces: list[str] = []
    with urllib.request.urlopen(request, timeout=300) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    pieces.append(choice["delta"].get("content") or "")
            if leave_after is not None and len(pieces) > leave_after:
                break
    texts[name] = "".join(pieces)


def wait_until_up(port: int) -> None:
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "rule.yaml").write_text(RULE.lstrip())
    (folder / "monitor.yaml").write_text(CONFIG.format(folder=folder))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    command = [
        sys.executable, Path(__file__).with_name("serve_transformers.py"),
        resolve_target("smollm2-135m-instruct"), folder / "monitor.yaml", str(port),
    ]  # fmt: skip
    with log.open("w") as errors:
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    texts: dict[str, str] = {}
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n", log.read_text()[-4000:]
        wait_until_up(port)
        clients = [threading.Thread(target=ask, args=(port, name, texts)) for name in NAMES]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        ask(port, "gone", texts, leave_after=3)
        said, _ = server.communicate(timeout=400)
    finally:
        server.kill()
        server.wait()
    assert said.endswith("closed\n"), log.read_text()[-4000:]
    (recorded,) = (folder / "recordings").iterdir()
    recording = Recording.open(recorded)
    rows: dict[str, dict[int, torch.Tensor]] = {}
    for one in recording.activations():
        activation = one.activation
        rows.setdefault(activation.request.request_id, {})[activation.position] = activation.vector
    lines = (folder / "alerts.jsonl").read_text().splitlines()
    return Served(
        texts,
        {record.request.request_id: record for record in recording.requests()},
        rows,
        [json.loads(line) for line in lines],
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_text_on_record_is_what_the_client_was_streamed(served: Served, name: str) -> None:
    record = served.requests[name]
    assert record.output_text.replace("<|im_end|>", "") == served.texts[name]
    assert len(record.output_token_ids) == 16


@pytest.mark.parametrize("name", NAMES)
def test_every_computed_token_is_recorded_once_with_its_hidden_state(
    served: Served, name: str
) -> None:
    record, rows = served.requests[name], served.rows[name]
    ids = [*record.prompt_token_ids, *record.output_token_ids]
    with torch.no_grad():
        output = load_target("smollm2-135m-instruct").model(
            torch.tensor([ids]), output_hidden_states=True
        )
    states = output.hidden_states[LAYER][0]
    assert sorted(rows) == list(range(len(ids) - 1 - len(rows), len(ids) - 1))
    cached = record.coverage.cached_tokens
    assert len(rows) + cached == len(ids) - 1
    for position, vector in rows.items():
        error = torch.linalg.vector_norm(vector - states[position])
        assert error / torch.linalg.vector_norm(states[position]) < TOLERANCE


def test_a_client_that_hangs_up_ends_its_request(served: Served) -> None:
    record = served.requests["gone"]
    assert 3 <= len(record.output_token_ids) < 400
    assert not record.coverage.dropped_tokens


def test_every_request_raised_its_alert(served: Served) -> None:
    said = {alert["data"]["unmapped"]["gen_ai.response.id"] for alert in served.alerts}
    assert said == {*NAMES, "gone"}
