"""An unchanged OpenAI server, switched on by one variable; what it recorded is read afterwards."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_live import TOLERANCE, reference, write_configuration
from vllm_serving import TRACE, chat, serving

from nae_monitor.recording import Recording

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Served:
    """What two clients got, and what was recorded beside it."""

    texts: dict[str, str]
    requests: dict[str, Any]  # recorded, by the client's id
    rows: dict[str, dict[int, torch.Tensor]]
    alerts: list[dict[str, Any]]


def ask(port: int, name: str, texts: dict[str, str]) -> None:
    texts[name] = chat(port, name, f"Tell me about {name}.").text


def wait_for_alerts(path: Path, count: int) -> None:
    """A server that is told to end gives the monitor a few seconds only."""
    while not path.exists() or len(path.read_text().splitlines()) < count:
        time.sleep(0.5)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("server")
    write_configuration(folder)
    texts: dict[str, str] = {}
    with serving(folder) as server:
        clients = [
            threading.Thread(target=ask, args=(server.port, name, texts))
            for name in ("rain", "foxes")
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        ask(server.port, "end", texts)
        wait_for_alerts(folder / "alerts.jsonl", 3)
    assert len(texts) == 3, server.said
    recordings = list((folder / "recordings").iterdir())
    assert len(recordings) == 1, server.said
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
