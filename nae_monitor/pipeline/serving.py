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
from nae_monitor.pipeline.follow_ups import FollowUps
from nae_monitor.pipeline.host_copy import HostRows, copy_rows
from nae_monitor.pipeline.patience import ROW_OVERHEAD_BYTES, Patience
from nae_monitor.pipeline.ports import Clock
from nae_monitor.pipeline.requests import Requests
from nae_monitor.pipeline.turn import Ended, Row, Turn
from nae_monitor.records import Activation, Choice, Request, RowBatch, SampleReason
from nae_monitor.screen import Offers, Screen
from nae_monitor.settings import BudgetSettings, CaptureSettings
from nae_monitor.token_text import TokenText

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
        budget: BudgetSettings,
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
        self._patience = Patience(
            screen, budget, settings, health, clock, enqueue=self._enqueue, end=self._end
        )
        queue.refill_by(self._patience.release)
        self.follow_ups = FollowUps(budget, settings, health, self._patience, self._end)

    def stop(self) -> None:
        """Take no further rows."""
        self._stopping.set()
        self._patience.close()

    def renew(self) -> None:
        """Hold nothing: for a forked child."""
        self._patience.renew()
        self.follow_ups.renew()

    def request_started(
        self, request: Request, prompt_token_ids: tuple[int, ...], text: TokenText
    ) -> None:
        """Begin, or go on with, a request whose prompt is ``prompt_token_ids``."""
        if not self._stopping.is_set():
            self._patience.let_go(request.request_id)
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
        turns = {
            i: self._requests.turn(batch.requests[i].request_id) for i in set(batch.request_index)
        }
        amounts = _per_request(batch, batch.request_index)
        if self._stopping.is_set():
            self._health.count_each("dropped.closed", amounts)
            return
        offers = self._choose(batch, amounts)
        if offers is None:
            return
        strangers = [i for i, turn in turns.items() if turn is None]
        if strangers:
            offers = self._turn_away(batch, offers, strangers, amounts)
        self._health.count_each("tokens.screened", amounts)
        for turn in turns.values():
            if turn is not None:
                turn.rows_seen = True
        near = self.follow_ups.near(batch, _places(offers), turns)
        if offers.bought or offers.waiting or near:
            self._queue_rows(batch, offers, near, turns)

    def request_finished(self, request_id: str) -> None:
        """Queue the end of a request behind its rows."""
        turn = self._requests.generated(request_id)
        if turn is not None:
            self._patience.ended(turn)

    def _choose(self, batch: RowBatch, amounts: Mapping[str, int]) -> Offers | None:
        """The screen's choice; None, and every row counted, where there is none."""
        if not self._circuit.allows():
            self._health.count_each("dropped.screen_circuit_open", amounts)
            return None
        offers = self._circuit.call(lambda: self._offers(batch))
        if offers is None:
            self._health.count_each("dropped.screen_failed", amounts)
            self._blindness.failed("screen", "it fails", batch.requests[batch.request_index[0]])
        else:
            self._blindness.works("screen")
        return offers

    def _offers(self, batch: RowBatch) -> Offers:
        patient = self._patience.patient
        offers = (
            Offers(self._screen.choose(batch), []) if patient is None else patient.offers(batch)
        )
        if not all(0 <= row < len(batch) for row in _places(offers)):
            raise IndexError("the screen chose a row that is not there")
        return offers

    def _turn_away(
        self,
        batch: RowBatch,
        offers: Offers,
        strangers: Sequence[int],
        amounts: dict[str, int],
    ) -> Offers:
        """Count rows of requests that never started here, and take them out."""
        names = {batch.requests[i].request_id for i in strangers}
        gone = {name: amounts.pop(name) for name in names if name in amounts}
        self._health.count_each("dropped.unknown_request", gone)

        def is_known(choice: Choice) -> bool:
            return batch.request_index[choice.row] not in strangers

        return Offers(
            [choice for choice in offers.bought if is_known(choice)],
            [(choice, score) for choice, score in offers.waiting if is_known(choice)],
        )

    def _queue_rows(
        self,
        batch: RowBatch,
        offers: Offers,
        near: Sequence[int],
        turns: Mapping[int, Turn | None],
    ) -> None:
        choices = [*offers.bought, *(choice for choice, _ in offers.waiting)]
        choices += [Choice(row, SampleReason.NEIGHBOUR) for row in near]
        places = [choice.row for choice in choices]
        copied = self._copying.call(lambda: copy_rows(batch.vectors, places, self._dtype))
        if copied is None:
            owners = [batch.request_index[choice.row] for choice in offers.bought]
            chosen = _per_request(batch, owners)
            self._health.count_each("tokens.sampled", chosen)
            self._health.count_each("dropped.copy_failed", chosen)
            return
        rows = self._rows(batch, choices, copied, turns)
        first_waiting = len(offers.bought)
        for row in rows[:first_waiting]:
            if row is not None:
                self._enqueue(row)
        first_near = first_waiting + len(offers.waiting)
        self.follow_ups.hold(row for row in rows[first_near:] if row is not None)
        scores = (score for _, score in offers.waiting)
        waiting = zip(rows[first_waiting:first_near], scores, strict=True)
        self._patience.add([(row, score) for row, score in waiting if row is not None])

    def _rows(
        self,
        batch: RowBatch,
        choices: Sequence[Choice],
        copied: HostRows,
        turns: Mapping[int, Turn | None],
    ) -> list[Row | None]:
        """One a choice; None where its turn is over."""
        now_s, now_unix_ns = self._clock(), time.time_ns()
        rows: list[Row | None] = []
        for number, choice in enumerate(choices):
            turn = turns[batch.request_index[choice.row]]
            activation = _activation(batch, choice, copied.vectors[number], now_unix_ns)
            rows.append(None if turn is None else Row(activation, turn, copied, now_s))
        return rows

    def _enqueue(self, row: Row) -> None:
        """Queue a row that was bought; from any thread."""
        activation, vector = row.activation, row.activation.vector
        request_id = activation.request.request_id
        self._health.count("tokens.sampled", request_id=request_id)
        self._brake.queued(row.turn, activation.position)
        size_bytes = vector.element_size() * vector.numel() + ROW_OVERHEAD_BYTES
        if not self._queue.offer(row, size_bytes):
            self._brake.settled(row.turn, activation.position)
            reason = "shutdown" if self._stopping.is_set() else "queue_full"
            self._health.count(f"dropped.{reason}", request_id=request_id)

    def _end(self, turn: Turn) -> bool:
        return self._queue.offer(Ended(turn), 0)


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


def _places(offers: Offers) -> list[int]:
    return [choice.row for choice in (*offers.bought, *(one for one, _ in offers.waiting))]


def _per_request(batch: RowBatch, indices: Sequence[int]) -> dict[str, int]:
    """How many of ``indices`` into the batch's requests are each request's."""
    if len(indices) == 1:
        return {batch.requests[indices[0]].request_id: 1}
    amounts: dict[str, int] = {}
    for index, amount in Counter(indices).items():
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
