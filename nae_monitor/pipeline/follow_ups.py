"""What a rule's hit buys: the tokens beside it, and further texts of its own activation."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from nae_monitor.health import Health
from nae_monitor.pipeline.patience import ROW_OVERHEAD_BYTES, Patience
from nae_monitor.pipeline.turn import Row, Turn
from nae_monitor.records import Finding, FindingState, RowBatch, SampleReason, Severity
from nae_monitor.screen import MAX_PRIORITY
from nae_monitor.settings import BudgetSettings, CaptureSettings

_FOLLOWING = (SampleReason.NEIGHBOUR, SampleReason.RESAMPLE)


class FollowUps:
    """Holds the neighbours of chosen rows until their turn ends; thread-safe.

    What follows a hit goes before all other rows that wait, out of the same budget, and buys
    nothing itself. Held neighbours may fill half of what the queue may; those of the turn that
    began to hold first go first, and ``screen.neighbours_let_go`` counts them.
    """

    def __init__(
        self,
        settings: BudgetSettings,
        capture: CaptureSettings,
        health: Health,
        patience: Patience,
        requeue: Callable[[Turn], bool],
    ) -> None:
        """``requeue`` puts the end of a turn behind all that is queued; False: it cannot."""
        self._reach = settings.neighbours
        self._resamples = settings.resamples
        self._limit_bytes = capture.queue_bytes // 2
        self._health = health
        self._patience = patience
        self._requeue = requeue
        self.renew()

    def renew(self) -> None:
        """Hold nothing, with a lock of its own: for a forked child."""
        self._lock = threading.Lock()
        self._held: OrderedDict[Turn, dict[int, Row]] = OrderedDict()
        self._hits: dict[Turn, set[int]] = {}
        self._queued: set[Turn] = set()  # something that follows a hit may stand behind their end
        self._bytes = 0

    # -- generating threads -------------------------------------------------------------------

    def near(
        self, batch: RowBatch, chosen: Sequence[int], turns: dict[int, Turn | None]
    ) -> list[int]:
        """Rows that are not chosen and stand beside one that is, in this batch or just before."""
        if not self._reach:
            return []
        taken: set[int] = set(chosen)
        found: set[int] = set()
        for row in chosen:
            first, last = max(0, row - self._reach), min(len(batch), row + self._reach + 1)
            found.update(other for other in range(first, last) if self._beside(batch, row, other))
        for row, index in enumerate(batch.request_index):
            turn = turns[index]
            before = None if turn is None else turn.chosen_position
            if before is not None and 0 < batch.positions[row] - before <= self._reach:
                found.add(row)
        for row in chosen:
            turn = turns[batch.request_index[row]]
            if turn is not None:
                turn.chosen_position = max(turn.chosen_position or 0, batch.positions[row])
        return sorted(found - taken)

    def _beside(self, batch: RowBatch, row: int, other: int) -> bool:
        same = batch.request_index[row] == batch.request_index[other]
        return same and abs(batch.positions[row] - batch.positions[other]) <= self._reach

    def hold(self, rows: Iterable[Row]) -> None:
        """Hold neighbours; those of a hit that is known already are bought at once."""
        wanted: list[Row] = []
        with self._lock:
            for row in rows:
                place = row.activation.position
                hits = self._hits.get(row.turn, ())
                if any(abs(hit - place) <= self._reach for hit in hits):
                    wanted.append(row)
                else:
                    self._held.setdefault(row.turn, {})[place] = row
                    self._bytes += _size_bytes(row)
            while self._bytes > self._limit_bytes:
                turn, gone = self._held.popitem(last=False)
                self._release(gone.values())
                name = turn.request.request_id
                self._health.count("screen.neighbours_let_go", len(gone), request_id=name)
        self._buy(wanted)

    # -- the background thread ----------------------------------------------------------------

    def judged(self, row: Row, findings: Iterable[Finding]) -> None:
        """Buy what follows, if the findings on a row are a hit."""
        if not (self._reach or self._resamples) or row.activation.reason in _FOLLOWING:
            return
        if not any(_is_hit(finding) for finding in findings):
            return
        again = replace(row.activation, reason=SampleReason.RESAMPLE)
        wanted = [replace(row, activation=again, seed=n + 1) for n in range(self._resamples)]
        place = row.activation.position
        with self._lock:
            if self._reach:
                self._hits.setdefault(row.turn, set()).add(place)
            held = self._held.get(row.turn, {})
            beside = [held.pop(p) for p in list(held) if abs(p - place) <= self._reach]
            self._release(beside)
        self._buy([*wanted, *beside])

    def delays(self, turn: Turn) -> bool:
        """Whether the end of a turn must wait for what follows a hit; it then comes again."""
        with self._lock:
            queued = turn in self._queued
            self._queued.discard(turn)
        # What was bought stands in the queue by now, and the end goes behind it.
        if self._patience.delays(turn) or (queued and self._requeue(turn)):
            return True
        with self._lock:
            self._hits.pop(turn, None)
            self._release(self._held.pop(turn, {}).values())
        return False

    def _buy(self, rows: Sequence[Row]) -> None:
        if rows:
            with self._lock:
                self._queued.update(row.turn for row in rows)
            self._patience.add([(row, MAX_PRIORITY) for row in rows])

    def _release(self, rows: Iterable[Row]) -> None:
        self._bytes -= sum(_size_bytes(row) for row in rows)


def _is_hit(finding: Finding) -> bool:
    matched = finding.state is FindingState.MATCH
    return matched and finding.severity is not Severity.INFORMATIONAL


def _size_bytes(row: Row) -> int:
    vector = row.activation.vector
    return vector.element_size() * vector.numel() + ROW_OVERHEAD_BYTES
