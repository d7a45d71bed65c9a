"""A real server whose rows leave for a worker, which dies and comes back; and nothing grows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from resident import family, rss_mib
from test_cli_worker import running_worker
from vllm_live import WORKER_CONFIG, write_configuration
from vllm_serving import Completion, chat, serving

from nae_monitor.recording import Recording

pytestmark = [pytest.mark.live, pytest.mark.timeout(1200)]
TOPICS = ("rain", "foxes")
LENGTH = {"max_tokens": 32, "ignore_eos": True}
# Answers that do not hang on what was asked before.
EXACT = "--no-enable-prefix-caching"

SOAK_TOKENS = int(os.environ.get("NAE_VLLM_SOAK_TOKENS", "2048"))
CLIENTS, WARM_SHARE = 4, 4  # a quarter of the tokens warms up
MOST_RSS_MIB = 48.0  # of server and engine, of the worker: more after the soak than before


def wait_until(condition: Callable[[], Any]) -> None:
    while not condition():  # the test's own timeout ends a hung one
        time.sleep(0.1)


def alerts(folder: Path) -> list[dict[str, Any]]:
    path = folder / "alerts.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def end(worker: subprocess.Popen[str]) -> None:
    """In order, so that its recording is whole; 1 says that not every row was decoded in time."""
    worker.send_signal(signal.SIGTERM)
    _, err = worker.communicate(timeout=120)
    assert worker.returncode in (0, 1), err


class Client:
    """Asks the same again and again, one answer after the other."""

    def __init__(self, port: int, topic: str) -> None:
        self.got: list[Completion] = []
        self.pieces = 0
        self.asked = 0
        self._port, self._topic = port, topic
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _hear(self) -> None:
        self.pieces += 1

    def _run(self) -> None:
        while not self.over.is_set():
            self.pieces, self.asked = 0, self.asked + 1
            name = f"{self._topic}-{self.asked}"
            self.got.append(chat(self._port, name, question(self._topic), self._hear, **LENGTH))


def question(topic: str) -> str:
    return f"Tell me about {topic}."


@contextmanager
def asking(port: int) -> Iterator[list[Client]]:
    clients = [Client(port, topic) for topic in TOPICS]
    try:
        yield clients
    finally:
        for client in clients:
            client.over.set()
        for client in clients:
            client.thread.join()


def has_alert(folder: Path, name: str) -> bool:
    said = [one["data"]["unmapped"].get("gen_ai.response.id", "") for one in alerts(folder)]
    return any(one.startswith(f"chatcmpl-client-{name}-") for one in said)


def is_blind(folder: Path) -> bool:
    titles = [one["data"]["finding_info"]["title"] for one in alerts(folder)]
    return any(one.startswith("Monitor is blind: ipc.worker-0 (the conn") for one in titles)


def test_a_worker_killed_in_mid_stream_costs_rows_that_are_counted_and_no_answer(
    tmp_path: Path,
) -> None:
    config = str(write_configuration(tmp_path, WORKER_CONFIG))
    with running_worker(config) as first, serving(tmp_path, EXACT) as server:
        before = {t: chat(server.port, t, question(t), **LENGTH) for t in TOPICS}
        wait_until(lambda: has_alert(tmp_path, "foxes"))
        assert not is_blind(tmp_path)
        with asking(server.port) as clients:
            wait_until(lambda: all(client.pieces > 4 for client in clients))
            first.kill()
            wait_until(lambda: is_blind(tmp_path))
            with running_worker(config) as second:
                came = [client.asked for client in clients]  # under way when the worker came
                wait_until(lambda: all(c.asked > n + 2 for c, n in zip(clients, came, strict=True)))
                for client in clients:
                    client.over.set()
                    client.thread.join()
                chat(server.port, "after", question("end"), **LENGTH)
                wait_until(lambda: has_alert(tmp_path, "after"))
                end(second)
    for topic, client in zip(TOPICS, clients, strict=True):
        assert before[topic].ended == "length"
        assert len(client.got) == client.asked >= 3
        assert set(client.got) == {before[topic]}
    assert_loss_is_on_record(tmp_path)


def assert_loss_is_on_record(folder: Path) -> None:
    """By the second worker: what was under way when it came had lost rows, later ones none."""
    newest = max((folder / "recordings").iterdir(), key=lambda path: path.stat().st_mtime)
    recording = Recording.open(newest)
    requests = {record.request.group_id: record for record in recording.requests()}
    lost: Counter[str] = Counter()
    for record in requests.values():
        lost.update(record.coverage.dropped_tokens)
    assert lost["worker_lost"] + lost["no_worker"] > 0
    after = requests["client-after"]
    assert not {"worker_lost", "no_worker"} & set(after.coverage.dropped_tokens)
    groups = {one.activation.request.group_id for one in recording.activations()}
    assert "client-after" in groups


def generate_tokens(port: int, tokens: int, name: str) -> int:
    """So many at least; how many it were."""
    rounds = -(-tokens // (CLIENTS * LENGTH["max_tokens"]))
    with ThreadPoolExecutor(CLIENTS) as clients:
        for one in range(rounds):
            names = [f"{name}-{one}-{number}" for number in range(CLIENTS)]
            done = clients.map(lambda n: chat(port, n, question(n), **LENGTH), names)
            assert {completion.ended for completion in done} == {"length"}
    return rounds * CLIENTS * LENGTH["max_tokens"]


def test_the_memory_of_a_server_that_ships_its_rows_does_not_grow_with_its_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_configuration(tmp_path, WORKER_CONFIG))
    with running_worker(config) as worker, serving(tmp_path) as server:
        pids = family(server.pid)  # the engine is a process of its own

        def resident() -> dict[str, float]:
            return {"server": sum(map(rss_mib, pids)), "worker": rss_mib(worker.pid)}

        warm = generate_tokens(server.port, SOAK_TOKENS // WARM_SHARE, "warm")
        before = resident()
        tokens = generate_tokens(server.port, SOAK_TOKENS - warm, "soak")
        after = resident()
        with capsys.disabled():
            print(f"\nvLLM by ipc: {warm} tokens {before}, {tokens} more {after} MiB")
        wait_until(lambda: has_alert(tmp_path, "soak"))
    grown = {role: after[role] - before[role] for role in after}
    assert max(grown.values()) < MOST_RSS_MIB, grown
