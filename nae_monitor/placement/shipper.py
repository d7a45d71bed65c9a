"""The serving process's background thread: turns, rows and ends from the queue to workers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby

from nae_monitor.byte_queue import ByteQueue
from nae_monitor.health import Health
from nae_monitor.pipeline.assembly import Shared
from nae_monitor.pipeline.circuit import Circuit
from nae_monitor.pipeline.requests import LIVE_LIMIT
from nae_monitor.pipeline.turn import Ended, Row, Turn
from nae_monitor.placement.carrier import Carrier, Destination
from nae_monitor.placement.contents import read_turn
from nae_monitor.placement.frame import Frame, FrameError, Kind
from nae_monitor.placement.ledgers import Ledgers
from nae_monitor.placement.orders import Outcome, RaiseSampling, StopTurn
from nae_monitor.placement.turns import MAX_ROWS, Begin, End, Progress, Rows, Stopped
from nae_monitor.screen import RaisableScreen, Screen

IDLE_S = 0.1  # between looks at the connections; each takes the host's interpreter for a moment
PACE_S = 0.02  # while an order to stop may come, or a turn's outcome is awaited: how late it may be
TAKE_ITEMS = 256
ROWS_BYTES = 512 * 1024  # of vectors in one frame
NO_WORKER = "no worker was there to judge it"
TOLD_ELSEWHERE = "workers judge it, and their verdict does not come back"
WORKER_LOST = "its worker went away"


@dataclass(eq=False, slots=True)
class _Shipment:
    """A turn as far as it was shipped."""

    turn: Turn
    number: int
    to: Destination | None = None
    life: int = 0  # of the destination, when the turn was begun there
    output_tokens: int = 0  # shipped in this life
    rows: int = 0  # the same
    is_over: bool = False  # its end was shipped in this life

    @property
    def is_known(self) -> bool:
        """Whether the destination still knows of it."""
        return self.to is not None and self.to.is_ready and self.to.life == self.life


class Shipper:
    """Empties the queue of a serving process. Implements :class:`nae_monitor.pipeline.belt.Work`.

    A turn goes to one worker while that is there, to another when it went: from its beginning, but
    rows that the first had are lost (``dropped.worker_lost``). Where no worker listens, rows are
    ``dropped.no_worker``; where one listens and takes nothing, ``dropped.link_full``. In each case
    the request is undecided at best.
    """

    def __init__(self, health: Health, shared: Shared, *, carrier: Carrier, screen: Screen) -> None:
        self._health = health
        self._shared = shared
        self._queue: ByteQueue[Row | Ended] = shared.queue
        self._requests = shared.requests
        self._carrier = carrier
        self._screen = screen
        self._numbers = count()
        self._circuit = Circuit("placement", health, time.monotonic)
        self.renew()

    def renew(self) -> None:
        """Hold nothing: for a forked child."""
        self.in_hand: list[Row | Ended] = []
        self._shipments: dict[Turn, _Shipment] = {}
        self._by_number: dict[int, _Shipment] = {}
        self._unended: list[Turn] = []  # their ends found no room
        self._ledgers = Ledgers(self._health)
        self._stopping = False

    @property
    def waiting(self) -> int:
        """Turns that are over and without their outcome."""
        return len(self._unended) + sum(one.is_over for one in self._shipments.values())

    def stop(self) -> None:
        """Let :meth:`run` return when every end has its outcome."""
        self._stopping = True
        self._queue.wake()

    def abandon(self) -> bool:
        """False: nothing takes long here."""
        return False

    def run(self) -> None:
        """The thread's work."""
        self._carrier.open()
        try:
            while not self._shared.gate.is_shut and not self._is_done():
                if self._carrier.is_settling:
                    time.sleep(PACE_S)
                else:
                    self._queue.wait(self._pace_s())
                self._step()
        finally:
            self._carrier.close()

    def _pace_s(self) -> float:
        awaits_stops = self._shipments and self._shared.brake.enforces
        return PACE_S if awaits_stops or self.waiting or self._stopping else IDLE_S

    def _is_done(self) -> bool:
        return self._stopping and self._queue.is_spent() and not self.waiting

    def _step(self) -> None:
        with self._shared.gate.passing() as open_:
            if not open_:
                return
            with self._circuit.guard():
                self._listen()
            unended, self._unended = self._unended, []
            taken = [] if self._carrier.is_settling else self._queue.take(TAKE_ITEMS)
            self.in_hand = [*(Ended(turn) for turn in unended), *taken]
            while self.in_hand:
                self._ship_first()
            self._shared.blindness.report()

    # -- outwards -----------------------------------------------------------------------------

    def _ship_first(self) -> None:
        """Ship what is in hand of one turn, up to its end or the rows of another."""
        first = self.in_hand[0]
        if isinstance(first, Ended):
            shipped: Sequence[Row | Ended] = [first]
        else:
            together = groupby(self.in_hand, lambda one: isinstance(one, Row) and one.turn)
            shipped = list(next(together)[1])
        del self.in_hand[: len(shipped)]
        done = False
        with self._circuit.guard():
            try:
                if isinstance(first, Ended):
                    self._end(first.turn)
                else:
                    self._rows(first.turn, [row for row in shipped if isinstance(row, Row)])
                done = True
            except FrameError:
                self._health.count("placement.frames_too_long")
        if not done:
            self._failed(shipped)

    def _failed(self, items: Sequence[Row | Ended]) -> None:
        """Nothing may vanish: what a fault of our own left over is dropped and counted."""
        for item in items:
            self._requests.lost(item.turn, "it could not be shipped")
            if isinstance(item, Ended):
                self._conclude(item.turn)
            else:
                self._drop([item], "internal")

    def _rows(self, turn: Turn, rows: list[Row]) -> None:
        shipment = self._placed(turn)
        if shipment is None:
            self._drop(rows, "no_worker")
            return
        arrived = [row for row in rows if self._has_arrived(row)]
        for some in _chunks(arrived):
            progress = self._progress(shipment)
            message = Rows.of(shipment.number, progress, [row.activation for row in some])
            if not self._send(shipment, Kind.ROWS, message.header(), message.body()):
                self._drop(some, "link_full")
                continue
            shipment.output_tokens += len(progress.output_ids)
            shipment.rows += len(some)

    def _has_arrived(self, row: Row) -> bool:
        arrived = False
        with self._health.guard("copy"):
            row.copy.wait()
            arrived = True
        if not arrived:
            self._drop([row], "copy_failed")
        return arrived

    def _end(self, turn: Turn) -> None:
        shipment = self._placed(turn)
        if shipment is None:
            self._conclude(turn)
            return
        progress = self._progress(shipment)
        order = turn.stop_order
        message = End(
            turn=shipment.number,
            progress=progress,
            finished_unix_ns=turn.finished_unix_ns,
            rows_seen=turn.rows_seen,
            losses=self._requests.losses(turn),
            ledger=self._ledgers.own(turn.request.request_id),
            stopped=Stopped(
                turn.asks_brake,
                order.outcome if order else None,
                order.ended_at if order else None,
            ),
        )
        if not self._send(shipment, Kind.END, message.header(), message.body()):
            self._unended.append(turn)
        elif shipment.to is not None and not shipment.to.answers:
            self._requests.lost(turn, TOLD_ELSEWHERE)
            self._conclude(turn)
        else:
            shipment.is_over = True

    def _placed(self, turn: Turn) -> _Shipment | None:
        """The turn's shipment at a worker that knows of it; None where there is none."""
        shipment = self._shipments.get(turn)
        if shipment is not None and shipment.is_known:
            return shipment
        if shipment is not None:
            self._mourn(shipment)
        request = turn.request
        to = self._carrier.choose(_key(turn))
        if to is None:
            self._requests.lost(turn, NO_WORKER)
            return None
        if shipment is not None:
            self._by_number.pop(shipment.number, None)
        shipment = _Shipment(turn, next(self._numbers), to, to.life)
        message = Begin(shipment.number, request, turn.prompt_ids)
        if not self._send(shipment, Kind.BEGIN, message.header(), message.body()):
            shipment.to = None
            self._requests.lost(turn, NO_WORKER)
            return None
        self._shipments[turn] = self._by_number[shipment.number] = shipment
        if len(self._shipments) > LIVE_LIMIT:  # its request was given up, and its end never comes
            self._conclude(next(iter(self._shipments)))
        return shipment

    def _send(
        self, shipment: _Shipment, kind: Kind, header: dict[str, object], body: bytes
    ) -> bool:
        to = shipment.to
        return to is not None and to.send(kind, header, body, _key(shipment.turn))

    def _progress(self, shipment: _Shipment) -> Progress:
        start, turn = shipment.output_tokens, shipment.turn
        return Progress(start, tuple(turn.output_ids[start:]), turn.text_known)

    # -- inwards ------------------------------------------------------------------------------

    def _listen(self) -> None:
        for source, frame in self._carrier.poll():
            try:
                self._take(source, frame)
            except FrameError:
                self._health.count("ipc.malformed_frames")
        for name, why in self._carrier.faults().items():
            if why:
                self._shared.blindness.failed(name, why)
            else:
                self._shared.blindness.works(name)
        for shipment in list(self._shipments.values()):
            if not shipment.is_known:
                self._mourn(shipment)
                if shipment.is_over:
                    self._conclude(shipment.turn)

    def _take(self, source: Destination, frame: Frame) -> None:
        if frame.kind is Kind.RAISE:
            wish = RaiseSampling.read(frame)
            if isinstance(self._screen, RaisableScreen):
                self._screen.raise_sampling(wish.scope, wish.value, wish.rate, wish.tokens)
            return
        shipment = self._by_number.get(read_turn(frame))
        if shipment is None or shipment.to is not source:
            self._health.count("ipc.late_frames")
        elif frame.kind is Kind.STOP:
            order = StopTurn.read(frame)
            turn = shipment.turn
            self._shared.brake.ordered_elsewhere(turn, order.position, order.within_tokens)
        elif frame.kind is Kind.OUTCOME:
            self._settle(shipment, source, Outcome.read(frame))

    def _settle(self, shipment: _Shipment, source: Destination, outcome: Outcome) -> None:
        turn = shipment.turn
        self._ledgers.take(turn.request.request_id, source.source, outcome.ledger)
        self._requests.found(turn, outcome.findings)
        self._requests.lost_elsewhere(turn, outcome.losses)
        if not shipment.is_over:  # the worker gave it up; what follows is not judged
            self._requests.lost(turn, WORKER_LOST)
        self._conclude(turn)

    # -- losses -------------------------------------------------------------------------------

    def _mourn(self, shipment: _Shipment) -> None:
        """Its worker is gone, and with it all that was shipped and not answered."""
        if shipment.to is None:
            return
        turn = shipment.turn
        if shipment.rows:
            request_id = turn.request.request_id
            self._health.count("dropped.worker_lost", shipment.rows, request_id=request_id)
        self._requests.lost(turn, WORKER_LOST)
        shipment.to, shipment.rows, shipment.output_tokens = None, 0, 0

    def _drop(self, rows: Sequence[Row], reason: str) -> None:
        for row in rows:
            request_id = row.activation.request.request_id
            self._health.count(f"dropped.{reason}", request_id=request_id)

    def _conclude(self, turn: Turn) -> None:
        shipment = self._shipments.pop(turn, None)
        if shipment is not None:
            self._by_number.pop(shipment.number, None)
        self._requests.conclude(turn)


def _key(turn: Turn) -> str:
    """What keeps turns together: of a session, for rules that look at one; else of a batch."""
    return turn.request.session_id or turn.request.group_id


def _chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Rows such that each lot's vectors fit a frame."""
    if rows:
        vector = rows[0].activation.vector
        row_bytes = max(1, vector.numel() * vector.element_size())
        step = max(1, min(MAX_ROWS, ROWS_BYTES // row_bytes))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]


class ServingAftermath:
    """What is left when a serving process's half ends before its workers answered."""

    def __init__(self, health: Health, shared: Shared, shipper: Shipper) -> None:
        self._health = health
        self._shared = shared
        self._shipper = shipper

    def dropped(self, row: Row, reason: str) -> None:
        """A chosen row was not shipped."""
        request_id = row.activation.request.request_id
        self._health.count(f"dropped.{reason}", request_id=request_id)

    def ended(self, turn: Turn) -> None:
        """A turn's end was not shipped."""
        self._shared.requests.lost(turn, "its end was not shipped")
        self._shared.requests.conclude(turn)

    def over(self, why: str) -> None:
        """No outcome comes any more."""
        self._shared.requests.end(why)

    def close(self) -> bool:
        """False where a turn waits for its outcome."""
        return not self._shipper.waiting

    def renew(self) -> None:
        """Nothing is held here."""
