"""Rows that wait for the screen's budget, and the ends of their turns behind them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from nae_monitor.health import Health
from nae_monitor.pipeline.circuit import Circuit
from nae_monitor.pipeline.ports import Clock
from nae_monitor.pipeline.turn import Row, Turn
from nae_monitor.screen import PatientScreen, Screen, SellingScreen, WaitingRows
from nae_monitor.settings import BudgetSettings, CaptureSettings

ROW_OVERHEAD_BYTES = 1024  # Python objects beside the vector, roughly


class Patience:
    """Between the screen's choice and the queue; for any number of threads, none of which waits.

    A row that finds no budget before ``wait_s`` is over, whose request has had all that it may
    have, or for which there is no room, is let go: it was never sampled, so the ledger does not
    know it, and ``screen.passed_over`` counts it.

    Args:
        screen: sells decodes.
        settings: how long rows wait, and what waiting is worth.
        capture: how much room waiting rows have: half of what the queue has.
        health: counts ``screen.waited`` and ``screen.passed_over``.
        clock: seconds, monotonic.
        enqueue: takes a row that was bought.
        end: takes a turn whose last row has left.
    """

    def __init__(
        self,
        screen: Screen,
        settings: BudgetSettings,
        capture: CaptureSettings,
        health: Health,
        clock: Clock,
        *,
        enqueue: Callable[[Row], None],
        end: Callable[[Turn], object],
    ) -> None:
        self._screen = screen if isinstance(screen, SellingScreen) else None
        waits = settings.wait_s > 0
        self.patient = screen if waits and isinstance(screen, PatientScreen) else None
        self._settings = settings
        self._queue_bytes = capture.queue_bytes
        self._health = health
        self._clock = clock
        self._circuit = Circuit("waiting", health, clock)
        self._enqueue = enqueue
        self._end = end
        self.renew()

    def renew(self) -> None:
        """Hold nothing, with a lock of its own: for a forked child."""
        self._lock = threading.Lock()
        self._pool: WaitingRows[Row] | None = None
        self._ends: dict[Turn, None] = {}
        self._closed = False

    def add(self, rows: Sequence[tuple[Row, float]]) -> None:
        """Let rows wait, each with its score; what can be paid goes on at once."""
        now_s = self._clock()
        with self._lock:
            gone = [row for row, _ in rows] if self._closed or self._screen is None else []
            if not gone and rows:
                pool = self._room_for(rows[0][0])
                for row, score in rows:
                    request_id = row.activation.request.request_id
                    gone += pool.add(row, request_id, score, now_s)
                self._health.count("screen.waited", len(rows))
            self._pass_over(gone)
        self.release()

    def release(self) -> bool:
        """Buy what can be bought; whether rows still wait. Never raises."""
        if not self._pool:
            return False
        with self._circuit.guard(), self._lock:
            pool, screen = self._pool, self._screen
            if pool and screen is not None:
                late = pool.expire(self._clock())
                bought, let_go = pool.take(screen.buy)
                for row in bought:
                    self._enqueue(row)
                self._pass_over([*late, *let_go])
        return bool(self._pool)

    def ended(self, turn: Turn) -> None:
        """Hand on the end of a turn, behind its rows."""
        if not self.delays(turn):
            self._end(turn)

    def delays(self, turn: Turn) -> bool:
        """Whether rows of an ended turn wait; its end is then handed on behind them."""
        with self._lock:
            pool = self._pool
            if pool is None or not pool.waits_for(turn.request.request_id):
                return False
            self._ends[turn] = None
            return True

    def let_go(self, request_id: str) -> None:
        """A further turn of a request begins: what waits of those before does so no longer."""
        with self._lock:
            if self._pool is not None and self._pool.waits_for(request_id):
                self._pass_over(self._pool.let_go(request_id))

    def close(self) -> None:
        """Nothing waits any more, now or later."""
        with self._lock:
            self._closed = True
            self._pass_over(self._pool.let_go() if self._pool is not None else [])

    def _room_for(self, row: Row) -> WaitingRows[Row]:
        if self._pool is None:
            vector = row.activation.vector
            row_bytes = vector.element_size() * vector.numel() + ROW_OVERHEAD_BYTES
            self._pool = WaitingRows(
                ageing_per_s=self._settings.ageing_per_s,
                wait_s=self._settings.wait_s,
                limit=max(1, self._queue_bytes // (2 * row_bytes)),
            )
        return self._pool

    def _pass_over(self, rows: Sequence[Row]) -> None:
        """Count rows that were let go, and hand on the ends that waited for nothing else."""
        for row in rows:
            request_id = row.activation.request.request_id
            self._health.count("screen.passed_over", request_id=request_id)
        pool = self._pool
        for turn in list(self._ends):
            if pool is None or not pool.waits_for(turn.request.request_id):
                del self._ends[turn]
                self._end(turn)
