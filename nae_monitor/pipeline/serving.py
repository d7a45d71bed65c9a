"""What runs in the serving thread: screen, start a copy, queue. It never waits and never raises."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch

from nae_monitor.byte_queue import ByteQueue
from nae_monitor.health import Health
from nae_monitor.pipeline.blindness import Blindness
from nae_monitor.pipeline.brake import Brake
from nae_monitor.pipeline.circuit import Circuit
from nae_monitor.pipeline.host_copy import copy_rows
from nae_monitor.pipeline.ports import Clock
from nae_monitor.pipeline.requests import Requests
from nae_monitor.pipeline.turn import Ended, Row, Turn
from nae_monitor.records import Activation, Choice, Request, RowBatch
from nae_monitor.screen import Screen
from nae_monitor.settings import CaptureSettings
from nae_monitor.token_text import TokenText

ROW_OVERHEAD_BYTES = 1024  # Python objects beside the vector, roughly
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


class ServingSide:
    """Takes what taps capture, from any number of generating threads.

    Every row is counted once: ``tokens.screened``, or ``dropped.REASON`` before the screen
    (``screen_failed``, ``screen_circuit_open``, ``unknown_request``, ``closed``); every chosen
    row is queued, or dropped after it (``copy_failed``, ``queue_full``, ``shutdown``).
    """

    def __init__(
        self,
        settings: CaptureSettings,
        health: Health,
        *,
        screen: Screen,
        requests: Requests,
        queue: ByteQueue[Row | Ended],
        blindness: Blindness,
        clock: Clock,
        start_worker: Callable[[], None],
        brake: Brake,
    ) -> None:
        self._brake = brake
        self._dtype = _DTYPES[settings.vector_dtype]
        self._health = health
        self._screen = screen
        self._circuit = Circuit("screen", health, clock)
        self._copying = Circuit("copy", health, clock)
        self._starting = Circuit("worker", health, clock)
        self._requests = requests
        self._queue = queue
        self._blindness = blindness
        self._clock = clock
        self._start_worker = start_worker
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Take no further rows."""
        self._stopping.set()

    def request_started(
        self, request: Request, prompt_token_ids: tuple[int, ...], text: TokenText
    ) -> None:
        """Begin, or go on with, a request whose prompt is ``prompt_token_ids``."""
        if not self._stopping.is_set():
            self._requests.started(request, prompt_token_ids, text)
            with self._starting.guard():
                self._start_worker()

    def tokens(self, request_id: str, token_ids: tuple[int, ...]) -> None:
        """Append generated tokens."""
        turn = self._requests.turn(request_id)
        if turn is not None:
            turn.output_ids.extend(token_ids)

    def rows(self, batch: RowBatch) -> None:
        """Screen a batch and queue what the screen bought."""
        per_index = Counter(batch.request_index)
        turns = {i: self._requests.turn(batch.requests[i].request_id) for i in per_index}
        amounts = _per_request(batch, per_index)
        if self._stopping.is_set():
            self._health.count_each("dropped.closed", amounts)
            return
        choices = self._choose(batch, amounts)
        if choices is None:
            return
        strangers = [i for i, turn in turns.items() if turn is None]
        if strangers:
            choices = self._turn_away(batch, choices, strangers, amounts)
        self._health.count_each("tokens.screened", amounts)
        for turn in turns.values():
            if turn is not None:
                turn.rows_seen = True
        if choices:
            self._queue_rows(batch, choices, turns)

    def request_finished(self, request_id: str) -> None:
        """Queue the end of a request behind its rows."""
        turn = self._requests.generated(request_id)
        if turn is not None:
            self._queue.offer(Ended(turn), 0)

    def _choose(self, batch: RowBatch, amounts: Mapping[str, int]) -> Sequence[Choice] | None:
        """The screen's choice; None, and every row counted, where there is none."""
        if not self._circuit.allows():
            self._health.count_each("dropped.screen_circuit_open", amounts)
            return None
        choices = self._circuit.call(lambda: _checked(self._screen.choose(batch), len(batch)))
        if choices is None:
            self._health.count_each("dropped.screen_failed", amounts)
            self._blindness.failed("screen", "it fails", batch.requests[batch.request_index[0]])
        else:
            self._blindness.works("screen")
        return choices

    def _turn_away(
        self,
        batch: RowBatch,
        choices: Sequence[Choice],
        strangers: Sequence[int],
        amounts: dict[str, int],
    ) -> Sequence[Choice]:
        """Count rows of requests that never started here, and take them out."""
        names = {batch.requests[i].request_id for i in strangers}
        gone = {name: amounts.pop(name) for name in names if name in amounts}
        self._health.count_each("dropped.unknown_request", gone)
        return [c for c in choices if batch.request_index[c.row] not in strangers]

    def _queue_rows(
        self, batch: RowBatch, choices: Sequence[Choice], turns: Mapping[int, Turn | None]
    ) -> None:
        places = [choice.row for choice in choices]
        chosen = _per_request(batch, Counter(batch.request_index[row] for row in places))
        self._health.count_each("tokens.sampled", chosen)
        copied = self._copying.call(lambda: copy_rows(batch.vectors, places, self._dtype))
        if copied is None:
            self._health.count_each("dropped.copy_failed", chosen)
            return
        now_s, now_unix_ns = self._clock(), time.time_ns()
        size_bytes = self._dtype.itemsize * batch.vectors.shape[-1] + ROW_OVERHEAD_BYTES
        for number, choice in enumerate(choices):
            turn = turns[batch.request_index[choice.row]]
            activation = _activation(batch, choice, copied.vectors[number], now_unix_ns)
            if turn is None:
                continue
            self._brake.queued(turn, activation.position)
            if not self._queue.offer(Row(activation, turn, copied, now_s), size_bytes):
                self._brake.settled(turn, activation.position)
                reason = "shutdown" if self._stopping.is_set() else "queue_full"
                request_id = activation.request.request_id
                self._health.count(f"dropped.{reason}", request_id=request_id)


class Listener:
    """The serving side with one tokenizer. Implements the capture stage's listener."""

    def __init__(self, serving: ServingSide, text: TokenText) -> None:
        self._serving = serving
        self._text = text
        self.tokens = serving.tokens
        self.rows = serving.rows
        self.request_finished = serving.request_finished

    def request_started(self, request: Request, prompt_token_ids: tuple[int, ...]) -> None:
        """Begin, or go on with, a request."""
        self._serving.request_started(request, prompt_token_ids, self._text)


def _checked(choices: Sequence[Choice], rows: int) -> Sequence[Choice]:
    if not all(0 <= choice.row < rows for choice in choices):
        raise IndexError("the screen chose a row that is not there")
    return choices


def _per_request(batch: RowBatch, per_index: Mapping[int, int]) -> dict[str, int]:
    """Rows by request id, from rows by index into the batch's requests."""
    amounts: dict[str, int] = {}
    for index, amount in per_index.items():
        request_id = batch.requests[index].request_id
        amounts[request_id] = amounts.get(request_id, 0) + amount
    return amounts


def _activation(
    batch: RowBatch, choice: Choice, vector: torch.Tensor, captured_unix_ns: int
) -> Activation:
    row = choice.row
    return Activation(
        request=batch.requests[batch.request_index[row]],
        position=batch.positions[row],
        token_id=batch.token_ids[row],
        token="",
        phase=batch.phases[row],
        layer=batch.layer,
        vector=vector,
        reason=choice.reason,
        scores=choice.scores,
        captured_unix_ns=captured_unix_ns,
    )
