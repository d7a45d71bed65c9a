"""What a worker commits on a topic: never past a turn under way, and past all that is none."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kafka import TopicPartition
from placement_parts import D_MODEL, LAYER, configuration, make_worker, wait_until

from nae_monitor.placement import topic_receiver
from nae_monitor.placement.frame import Kind, pack
from nae_monitor.placement.greetings import Hello
from nae_monitor.placement.turns import Begin, End, Progress, Rows, Stopped
from nae_monitor.records import Activation, Decoding, Phase, Request, SampleReason
from nae_monitor.settings import CaptureSettings
from nae_monitor.testing import FakeDecoder

HERE, THERE = TopicPartition("activations", 0), TopicPartition("activations", 1)


class Gated(FakeDecoder):
    """Decodes nothing before its gate is opened."""

    def __init__(self) -> None:
        super().__init__(D_MODEL, LAYER)
        self.gate = threading.Event()

    def decode(
        self, vectors: torch.Tensor, *, seeds: Sequence[int] | None = None
    ) -> list[Decoding]:
        self.gate.wait()
        return super().decode(vectors)


class Consumer:
    """A client of a broker that serves what a test says; keeps what is committed."""

    def __init__(self) -> None:
        self.steps: queue.SimpleQueue[Callable[[], dict[Any, Any]]] = queue.SimpleQueue()
        self.committed: dict[TopicPartition, int] = {}
        self.looks = 0  # each comes after a chance to commit
        self.listener: Any = None

    def serve(self, partition: TopicPartition, *frames: bytes, process: str = "x") -> None:
        """Frames of a process, at the offsets from 0 on."""
        headers = [("nae_process", process.encode())]
        records = [
            SimpleNamespace(value=frame, headers=headers, offset=offset)
            for offset, frame in enumerate(frames)
        ]
        self.steps.put(lambda: {partition: records})

    def revoke(self, partition: TopicPartition) -> None:
        self.steps.put(lambda: self.listener.on_partitions_revoked([partition]) or {})

    def settle(self) -> None:
        """Wait until all that was served is taken, and what may be committed is."""
        wait_until(self.steps.empty)
        seen = self.looks
        wait_until(lambda: self.looks > seen + 2)

    def subscribe(self, topics: list[str], listener: Any) -> None:
        self.listener = listener

    def poll(self, timeout_ms: int, max_records: int) -> dict[Any, Any]:
        try:
            return self.steps.get(timeout=0.005)()
        except queue.Empty:
            self.looks += 1
            return {}

    def commit(self, offsets: dict[TopicPartition, Any]) -> None:
        self.committed |= {partition: one.offset for partition, one in offsets.items()}

    def paused(self) -> set[TopicPartition]:
        return set()

    def highwater(self, partition: TopicPartition) -> int:
        return 0

    def close(self, autocommit: bool) -> None: ...


@contextmanager
def reading(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> Iterator[tuple[Consumer, threading.Event, list[int]]]:
    """A worker that reads from a double; the decoder's gate, and the turns worked off so far."""
    consumer, decoder = Consumer(), Gated()
    monkeypatch.setattr(topic_receiver, "KafkaConsumer", lambda **_: consumer)
    monkeypatch.setattr(topic_receiver, "COMMIT_S", 0.0)
    settings = configuration(directory, capture=CaptureSettings(min_position=0, placement="kafka"))
    over: list[int] = []
    answer = topic_receiver.TopicReceiver.answer

    def heard(self: Any, guest: Any, kind: Kind, header: dict[str, Any]) -> None:
        answer(self, guest, kind, header)
        over.append(header["turn"])

    monkeypatch.setattr(topic_receiver.TopicReceiver, "answer", heard)
    worker = make_worker(settings, decoder=decoder)
    running = threading.Thread(target=worker.run)
    running.start()
    try:
        yield consumer, decoder.gate, over
    finally:
        decoder.gate.set()
        worker.stop()
        running.join()


def begin(turn: int = 0, request_id: str = "r", process: str = "x", prompt: int = 3) -> bytes:
    """The beginning of a turn; of a malformed one where ``prompt`` is not its prompt's length."""
    message = Begin(turn, Request(request_id, request_id, "bench"), (1, 2, 3))
    captured = Hello(process, "bench", LAYER, D_MODEL).header()
    header = {**message.header(), "captured": captured, "prompt_tokens": prompt}
    return pack(Kind.BEGIN, header, message.body())


def rows(turn: int = 0) -> bytes:
    request = Request("r", "r", "bench")
    vector = torch.eye(D_MODEL)[0].half()
    row = Activation(
        request, 0, 1, "", Phase.PROMPT, LAYER, vector, SampleReason.EVERY_N,
        captured_unix_ns=time.time_ns(),
    )  # fmt: skip
    message = Rows.of(turn, Progress(0, (), True), [row])
    return pack(Kind.ROWS, message.header(), message.body(), sequence=1)


def end(turn: int = 0, sequence: int = 2) -> bytes:
    ledger, stopped = {"tokens.seen": 1, "tokens.screened": 1}, Stopped(False, None, None)
    message = End(turn, Progress(0, (), True), 1, True, {}, ledger, stopped)
    return pack(Kind.END, message.header(), message.body(), sequence=sequence)


def test_a_turn_is_committed_once_it_is_worked_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with reading(monkeypatch, tmp_path) as (consumer, gate, over):
        consumer.serve(HERE, begin(), rows(), end())
        consumer.settle()
        assert consumer.committed == {HERE: 0}
        gate.set()
        wait_until(lambda: len(over) == 1)
        consumer.settle()
        assert consumer.committed == {HERE: 3}


def test_the_late_end_of_a_turn_that_was_taken_away_does_not_end_it_where_it_is_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with reading(monkeypatch, tmp_path) as (consumer, gate, over):
        consumer.serve(HERE, begin(), rows(), end())
        consumer.revoke(HERE)
        consumer.serve(HERE, begin(), rows())
        consumer.settle()
        gate.set()
        wait_until(lambda: len(over) == 1)
        consumer.settle()
        assert consumer.committed == {HERE: 0}


def test_a_turn_whose_beginning_comes_twice_is_under_way_after_the_first_is_worked_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with reading(monkeypatch, tmp_path) as (consumer, gate, over):
        consumer.serve(HERE, begin(), begin(), rows())
        gate.set()
        wait_until(lambda: len(over) == 1)
        consumer.settle()
        assert consumer.committed == {HERE: 1}


def test_a_turn_that_is_over_and_not_judged_for_long_is_not_committed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(topic_receiver, "STALE_S", -1.0)
    with reading(monkeypatch, tmp_path) as (consumer, _, over):
        consumer.serve(HERE, begin(), rows(), end())
        consumer.settle()
        assert (consumer.committed, over) == ({HERE: 0}, [])


def test_a_malformed_beginning_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with reading(monkeypatch, tmp_path) as (consumer, _, _):
        consumer.serve(HERE, begin(prompt=5), rows())
        consumer.settle()
        assert consumer.committed == {HERE: 2}


def test_a_turn_that_is_refused_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with reading(monkeypatch, tmp_path) as (consumer, _, _):
        consumer.serve(THERE, begin(), rows())
        consumer.serve(HERE, begin(process="y"), process="y")  # the same request id
        consumer.settle()
        assert consumer.committed == {THERE: 0, HERE: 1}
