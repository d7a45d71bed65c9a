"""What runs in the serving thread: screen, start a copy, queue. It never waits and never raises."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from nae_monitor.byte_queue import ByteQueue
from nae_monitor.health import Health
from nae_monitor.host_copy import HostCopy, copy_rows
from nae_monitor.pipeline.batches import activation_of, per_request, places_of
from nae_monitor.pipeline.blindness import Blindness
from nae_monitor.pipeline.brake import Brake
from nae_monitor.pipeline.circuit import Circuit
from nae_monitor.pipeline.follow_ups import FollowUps
from nae_monitor.pipeline.landing import Landing, Scoring
from nae_monitor.pipeline.patience import ROW_OVERHEAD_BYTES, Patience
from nae_monitor.pipeline.ports import Clock
from nae_monitor.pipeline.requests import Requests
from nae_monitor.pipeline.turn import Ended, Row, Turn
from nae_monitor.records import Choice, Request, RowBatch, SampleReason
from nae_monitor.screen import BeginningScreen, Offers, Screen
from nae_monitor.settings import BudgetSettings, CaptureSettings
from nae_monitor.token_text import TokenText

_DTYPES = {"float16": torch.float16, "float32": torch.float32}


class ServingSide:
    """Takes what taps capture, from any number of generating threads.

    Where the screen scores on the device, a batch is put aside until its scores have come, and is
    chosen from with a later batch of any request or by the background thread.

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
        self._beginning = screen if isinstance(screen, BeginningScreen) else None
        self._circuit = Circuit("screen", health, clock)
        self._scoring = Circuit("scoring", health, clock)
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
        self._landing = Landing(self._land_late, self._copying.call)
        queue.refill_by(self._refill)
        self.follow_ups = FollowUps(budget, settings, health, self._patience, self._end)

    def stop(self) -> None:
        """Take no further rows."""
        self._stopping.set()
        self._patience.close()

    def renew(self) -> None:
        """Hold nothing: for a forked child."""
        self._landing.renew()
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
        amounts = per_request(batch, batch.request_index)
        if self._stopping.is_set():
            self._health.count_each("dropped.closed", amounts)
            return
        if not (self._circuit.allows() and self._scoring.allows()):
            self._health.count_each("dropped.screen_circuit_open", amounts)
            return
        begun: HostCopy | None = None
        if (screen := self._beginning) is not None:
            begun = self._scoring.call(lambda: screen.begin(batch))
            if begun is None:
                self._screen_failed(batch, amounts)
                return
        self._put(Scoring(batch, turns, amounts, begun))

    def request_finished(self, request_id: str) -> None:
        """Queue the end of a request behind its rows."""
        turn = self._requests.generated(request_id)
        if turn is not None:
            self._put(Ended(turn))

    def abandon(self) -> tuple[list[Ended], int]:
        """Let go of what is still on the device: the ends, and how many rows were lost."""
        ends, rows = [], 0
        for item in self._landing.abandon():
            if isinstance(item, Ended):
                ends.append(item)
            else:
                rows += len(item.batch)
                self._health.count_each("dropped.closed", item.amounts)
        return ends, rows

    def _put(self, item: Scoring | Ended) -> None:
        """Hand on at once where nothing is on its way from the device."""
        if self._landing.is_clear_for(item):
            self._land(item)
            return
        self._landing.put(item)
        # Who may be held until rows are judged is held for their scores as well.
        self._landing.settle(wait=self._brake.holds)
        if isinstance(item, Ended) and self._landing:
            self._queue.wake()

    def _refill(self) -> bool:
        """On the background thread: wait for the device, and buy; whether more becomes due."""
        self._landing.settle(wait=True)
        return self._patience.release()

    def _land(self, item: Scoring | Ended) -> None:
        if isinstance(item, Ended):
            self._patience.ended(item.turn)
        else:
            self._screened(item)

    def _land_late(self, item: Scoring | Ended) -> None:
        # Behind a boundary: whoever lands it may have handed in something else.
        with self._health.guard("landing"):
            self._land(item)

    def _screened(self, scoring: Scoring) -> None:
        """Choose from a batch, and queue what the screen bought."""
        batch, turns, amounts = scoring.batch, scoring.turns, scoring.amounts
        offers = self._circuit.call(lambda: self._offers(batch, scoring.begun))
        if offers is None:
            self._screen_failed(batch, amounts)
            return
        self._blindness.works("screen")
        strangers = [i for i, turn in turns.items() if turn is None]
        if strangers:
            offers = self._turn_away(batch, offers, strangers, amounts)
        self._health.count_each("tokens.screened", amounts)
        for turn in turns.values():
            if turn is not None:
                turn.rows_seen = True
        near = self.follow_ups.near(batch, places_of(offers), turns)
        if offers.bought or offers.waiting or near:
            self._queue_rows(batch, offers, near, turns)

    def _screen_failed(self, batch: RowBatch, amounts: Mapping[str, int]) -> None:
        self._health.count_each("dropped.screen_failed", amounts)
        self._blindness.failed("screen", "it fails", batch.requests[batch.request_index[0]])

    def _offers(self, batch: RowBatch, begun: HostCopy | None) -> Offers:
        patient, beginning = self._patience.patient, self._beginning
        if beginning is not None and patient is not None:
            offers = beginning.offers(batch, begun)
        elif beginning is not None:
            offers = Offers(beginning.choose(batch, begun), [])
        elif patient is not None:
            offers = patient.offers(batch)
        else:
            offers = Offers(self._screen.choose(batch), [])
        if not all(0 <= row < len(batch) for row in places_of(offers)):
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
            chosen = per_request(batch, owners)
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
        copied: HostCopy,
        turns: Mapping[int, Turn | None],
    ) -> list[Row | None]:
        """One a choice; None where its turn is over."""
        now_s, now_unix_ns = self._clock(), time.time_ns()
        rows: list[Row | None] = []
        for number, choice in enumerate(choices):
            turn = turns[batch.request_index[choice.row]]
            activation = activation_of(batch, choice, copied.tensor[number], now_unix_ns)
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
