"""Takes turns and chosen rows that another process captured and screened."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from nae_monitor.health import Health
from nae_monitor.host_copy import HostCopy
from nae_monitor.pipeline.assembly import Shared
from nae_monitor.pipeline.patience import ROW_OVERHEAD_BYTES
from nae_monitor.pipeline.ports import Clock
from nae_monitor.pipeline.turn import Ended, Row, Turn
from nae_monitor.records import Activation, Request
from nae_monitor.token_text import TokenText


class Intake:
    """The place of the serving side where that is elsewhere; for one thread.

    The ledger of a request is the other process's up to the screen; what is counted here comes
    after it: ``dropped.queue_full``, ``dropped.shutdown``, and all that the background thread
    counts.
    """

    def __init__(self, health: Health, shared: Shared, clock: Clock) -> None:
        self._health = health
        self._requests = shared.requests
        self._queue = shared.queue
        self._gate = shared.gate
        self._clock = clock

    @property
    def is_crowded(self) -> bool:
        """Whether half of the queue's room is taken."""
        return self._queue.filled_share > 0.5

    def begin(self, request: Request, prompt_ids: tuple[int, ...], text: TokenText) -> Turn:
        """A turn begins, or goes on after another worker lost it."""
        return self._requests.started(request, prompt_ids, text)

    def current(self, request_id: str) -> Turn | None:
        """The turn of a request that is generating now."""
        return self._requests.turn(request_id)

    def forget(self, request_id: str) -> None:
        """An id is used anew, by another process: what is known of its finished request goes."""
        self._requests.forget(request_id)
        self._health.forget(request_id)

    def progress(
        self, turn: Turn, start: int, output_ids: Sequence[int], *, text_known: bool
    ) -> None:
        """The tokens of a completion from number ``start`` on; those known already are skipped."""
        known = len(turn.output_ids)
        if start > known or not text_known:  # a gap: what follows would stand at wrong places
            turn.text_known = False
        turn.output_ids.extend(output_ids[max(0, known - start) :])

    def rows(self, turn: Turn, activations: Sequence[Activation]) -> None:
        """Queue chosen rows; none waits for room."""
        now_s, now_unix_ns = self._clock(), time.time_ns()
        turn.rows_seen = True
        for activation in activations:
            vector = activation.vector
            size_bytes = vector.element_size() * vector.numel() + ROW_OVERHEAD_BYTES
            age_s = max(0.0, (now_unix_ns - activation.captured_unix_ns) / 1e9)
            row = Row(activation, turn, HostCopy(vector), now_s - age_s)
            if not self._queue.offer(row, size_bytes):
                reason = "shutdown" if self._gate.is_shut else "queue_full"
                self._health.count(f"dropped.{reason}", request_id=turn.request.request_id)

    def lost(self, turn: Turn, why: str) -> None:
        """Something of a turn is missing, and its text may be out of step."""
        turn.text_known = False
        self._requests.lost(turn, why)

    def lost_elsewhere(self, turn: Turn, losses: Mapping[str, int]) -> None:
        """See :meth:`Requests.lost_elsewhere`."""
        self._requests.lost_elsewhere(turn, losses)

    def end(self, turn: Turn, finished_unix_ns: int) -> None:
        """Queue the end of a turn behind its rows."""
        turn.finished_unix_ns = finished_unix_ns
        self._queue.offer(Ended(turn), 0)
