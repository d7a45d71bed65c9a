"""A sink that takes its alerts from an outbox to a far end that answers call by call."""

from __future__ import annotations

import sqlite3
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from nae_monitor.alert.durable import DurableSink
from nae_monitor.alert.event import redacted_event
from nae_monitor.alert.outbox import Outbox
from nae_monitor.alert.outbox_rows import Entry, Row
from nae_monitor.alert.threaded import BACKOFF_LAST_S
from nae_monitor.records import Alert

# Attempts at one alert, some minutes with their pauses, until the next one is tried in its place.
STUCK_ATTEMPTS = 50
LAST_WAIT_S = 0.1  # for a call in progress, when the time to close is over


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one row: delivered, or refused for a reason and set aside.

    Where a far end took some of several rows and does not say which, all of them are set aside,
    and as many as it took ``is_delivered`` all the same.
    """

    refused: str = ""
    is_delivered: bool = False


DELIVERED = Fate(is_delivered=True)


class FrontRow:
    """How often the row at the front was answered and not taken."""

    def __init__(self) -> None:
        self._row_id, self._attempts = -1, 0

    def is_stuck(self, row: Row) -> bool:
        """Count one more time; whether it is time to try the next row in its place."""
        self._attempts = self._attempts + 1 if self._row_id == row.row_id else 1
        self._row_id = row.row_id
        return self._attempts >= STUCK_ATTEMPTS


class RelayingSink(DurableSink):
    """``delivered`` means that the far end said so; until then the alert lies in the outbox.

    The far end is called on a thread of its own, one batch at a time and in order: while it hangs,
    alerts are committed all the same. What it refuses for good goes to the rejected rows of the
    outbox, for ``alerts resend``.
    """

    batch_rows = 50  # of one errand; what it delivered is known when all of it is over

    @abstractmethod
    def _carry(self, rows: Sequence[Row]) -> list[Fate]:
        """Take rows to the far end, from the front; on the errand's thread.

        Returns:
            the fates of as many as have one; fewer than all means: the rest later.

        Raises:
            Exception: none of them has one; all of them later.
        """

    def _start_afresh(self) -> None:
        self._errand: Errand | None = None
        self._why_later = ""  # the errand's reason for bringing rows back
        self._brought_back: frozenset[int] = frozenset()  # rows that the last errand came back with
        self._refused: deque[tuple[int, Fate]] = deque()  # rows and why, to be set aside
        self._cursor = 0  # rows up to here are acknowledged, refused or gone
        super()._start_afresh()

    def _prepared(self, alert: Alert) -> list[Entry]:
        return [Entry.of(redacted_event(alert, self._policy), self._policy.mode)]

    def _on_wire(self) -> frozenset[int]:
        if self._errand is None:
            return self._brought_back
        return frozenset(row.row_id for row in self._errand.rows)

    @property
    def _is_sending(self) -> bool:
        return self._errand is not None

    def _recall(self) -> list[Row]:
        rows: list[Row] = []
        if self._errand is not None:  # it goes on, and is waited for: two would mix up the order
            rows = list(self._errand.rows)
            self._errand.rows = ()
        self._brought_back = frozenset()
        self._refused.clear()
        self._cursor = 0
        return rows

    def _transmit(self, outbox: Outbox) -> None:
        self._settle(outbox)
        if self._errand is not None or time.monotonic() < self._send_at_s:
            return
        self._set_aside(outbox)
        rows = outbox.after(self._cursor, self.batch_rows)
        if rows:
            self._errand = Errand(partial(self._carry, rows), rows, self.name)

    def _settle(self, outbox: Outbox) -> None:
        errand = self._errand
        if errand is None or not errand.is_over:
            return
        self._errand = None
        for row, fate in zip(errand.rows, errand.fates, strict=False):
            if fate is DELIVERED:
                self._acked.add(row.row_id)
                self._tally.count("delivered")
            else:
                self._refused.append((row.row_id, fate))
            self._cursor = row.row_id
        if errand.error is not None:
            self._tally.failed(errand.error)
            self._why_later = type(errand.error).__name__
        rest = errand.rows[len(errand.fates) :]
        self._brought_back = frozenset(row.row_id for row in rest)
        if rest or errand.error is not None:
            self._pause_sending(self._why_later or "Exception")
        else:
            self._is_up()
        self._set_aside(outbox)

    def _set_aside(self, outbox: Outbox) -> None:
        """Note on disk what was refused; what the disk does not take now is tried again later.

        Last of all that an errand brings: a disk that is full must not make good alerts go twice.
        """
        while self._refused:
            row_id, fate = self._refused[0]
            try:
                gone = outbox.reject(row_id, fate.refused)
            except sqlite3.Error:
                self._send_at_s = time.monotonic() + BACKOFF_LAST_S
                raise
            self._refused.popleft()
            if fate.is_delivered:
                self._tally.count("delivered")
            else:
                self._tally.dropped("refused")
            self._tally.count("rejected_forgotten", gone)

    def _let_go(self, outbox: Outbox) -> None:
        if self._errand is not None:
            self._errand.join(max(LAST_WAIT_S, self._stop_at_s - time.monotonic()))
        self._settle(outbox)


class Errand:
    """One call of the far end, on a thread that nobody has to wait for."""

    def __init__(self, call: Callable[[], list[Fate]], rows: Sequence[Row], sink: str) -> None:
        self.rows = tuple(rows)
        self.fates: list[Fate] = []
        self.error: Exception | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, name=f"nae-{sink}-errand", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.fates = self._call()
        except Exception as error:  # noqa: BLE001 - told by the sink's thread; the rows stay
            self.error = error

    @property
    def is_over(self) -> bool:
        """Whether the call came back, with or without an answer."""
        return not self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait for it, at most so long."""
        self._thread.join(timeout_s)
