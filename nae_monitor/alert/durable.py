"""A sink whose alerts are on disk before the network sees them."""

from __future__ import annotations

import sqlite3
import time
from abc import abstractmethod
from pathlib import Path

from nae_monitor.alert.event import later_than_sequences_of, sequence_epoch
from nae_monitor.alert.event_rewriting import narrowed
from nae_monitor.alert.outbox import UNREADABLE, Outbox
from nae_monitor.alert.outbox_file import is_broken
from nae_monitor.alert.outbox_rows import Entry, Row
from nae_monitor.alert.privacy import ContentPolicy
from nae_monitor.alert.sink import log
from nae_monitor.alert.threaded import BACKOFF_FIRST_S, BACKOFF_LAST_S, ThreadedSink
from nae_monitor.health import Health

BATCH_ALERTS = 400  # of one commit, which waits for the disk
MOST_ACKED = 2000  # rows to forget that may wait for the next commit of alerts
FORGET_PAUSE_S = 1.0  # after the disk refused
POLL_S = 0.01  # while something is on its way
EPOCH = "sequence_epoch"
_ABANDONED: list[object] = []  # a parent's connections: closing them in a fork could hurt it


class DurableSink(ThreadedSink[list[Entry]]):
    """``accepted`` means committed to the outbox, ``delivered`` acknowledged by the far end.

    A far end that cannot be reached is no failure: alerts wait in the outbox, over restarts of
    this process too. While the disk takes nothing they wait in memory, and are counted as
    ``retried.*``; a damaged file is moved aside and a fresh one made, which is counted as
    ``outbox_damaged``, what was in it and nowhere else as ``dropped.outbox_damaged``.
    """

    batch_alerts = BATCH_ALERTS

    def __init__(
        self,
        name: str,
        policy: ContentPolicy,
        health: Health,
        *,
        queue_events: int,
        path: Path,
        max_bytes: int,
    ) -> None:
        """Open the outbox and start sending what an earlier process left in it.

        Raises:
            OSError: the outbox cannot be written, or is something else.
            sqlite3.Error: SQLite cannot use it.
        """
        self._path = path
        self._max_bytes = max_bytes
        self._outbox: Outbox | None = None
        super().__init__(name, policy, health, queue_events)
        self._outbox = self._open_outbox()
        self._ensure_thread()

    @property
    def _far_end(self) -> str:
        """What the log calls the far end."""
        return "the far end"

    @abstractmethod
    def _transmit(self, outbox: Outbox) -> None:
        """Send what can be sent now, and note what was acknowledged in ``_acked``."""

    @property
    @abstractmethod
    def _is_sending(self) -> bool:
        """Whether an answer of the far end may come at any moment."""

    @abstractmethod
    def _recall(self) -> list[Row]:
        """Forget what is on its way; returns it."""

    @abstractmethod
    def _on_wire(self) -> frozenset[int]:
        """Ids of the rows on their way."""

    def _start_afresh(self) -> None:
        if self._outbox is not None:
            _ABANDONED.append(self._outbox)
            self._outbox.let_go()
        self._outbox = None
        self._acked: set[int] = set()  # acknowledged, not yet deleted
        self._forget_at_s = 0.0
        self._events = self._bytes = 0
        self._oldest_unix_ns: int | None = None
        self._told_down: set[str] = set()
        self._carried: list[Entry] = []  # was on the wire when a file was lost
        self._send_at_s = 0.0
        self._send_pause_s = 0.0
        super()._start_afresh()

    def _open_outbox(self) -> Outbox:
        outbox = Outbox(self._path, self._max_bytes)
        for aside in outbox.moved_aside:
            self._tell_damaged(aside)
        self._tally.count("accepted", outbox.recovered)
        self._tally.count("recovered", outbox.recovered)
        kept = outbox.narrow(self._policy.mode, lambda value: narrowed(value, self._policy))
        self._tally.count("narrowed", kept)
        # A clock that went back would give this process's alerts lower sequences than its
        # predecessor's.
        later_than_sequences_of(outbox.fact(EPOCH) or 0)
        outbox.keep_fact(EPOCH, sequence_epoch())
        self._measure(outbox)
        return outbox

    def _measure(self, outbox: Outbox) -> None:
        """Copy what :meth:`stats` shows, which other threads ask for."""
        self._events, self._bytes = outbox.events - len(self._acked), outbox.size_bytes
        self._oldest_unix_ns = outbox.oldest_unix_ns()

    def _wait_s(self) -> float:
        usual_s = super()._wait_s()
        if self._is_sending:
            return min(usual_s, POLL_S)
        if self._events:
            return min(usual_s, max(POLL_S / 10, self._send_at_s - time.monotonic()))
        return usual_s

    def _pause_sending(self, why: str) -> None:
        """The far end takes nothing now: wait, longer each time."""
        self._tally.count(f"retried.{why}")
        self._send_pause_s = min(BACKOFF_LAST_S, max(BACKOFF_FIRST_S, self._send_pause_s * 2))
        self._send_at_s = time.monotonic() + self._send_pause_s
        if "far end" not in self._told_down:
            self._told_down.add("far end")
            log.warning(
                "sink %s: %s does not take alerts (%s); they wait in the outbox",
                self.name,
                self._far_end,
                why,
            )

    def _is_up(self) -> None:
        self._send_pause_s = 0.0
        if "far end" in self._told_down:
            self._told_down.discard("far end")
            log.warning("sink %s: %s takes alerts again", self.name, self._far_end)

    def _queued(self) -> None:
        """On the queue is not accepted yet: the outbox's commit is."""

    def _pending(self) -> int:
        return super()._pending() + self._events

    def stats(self) -> dict[str, int]:
        """As every sink's, with ``outbox_events``, ``outbox_bytes`` and ``outbox_oldest_s``."""
        oldest = self._oldest_unix_ns
        age_s = 0 if oldest is None else max(0, time.time_ns() - oldest) // 1_000_000_000
        return {
            **super().stats(),
            "outbox_events": self._events,
            "outbox_bytes": self._bytes,
            "outbox_oldest_s": age_s,
        }

    def _step(self) -> None:
        if self._outbox is None:  # in a forked child, or when a fresh file could not be had
            self._outbox = self._open_outbox()
        try:
            if self._carried:
                self._outbox.add(self._carried)
                self._carried = []
            self._work(self._outbox)
        except sqlite3.DatabaseError as error:
            if not is_broken(error):
                raise
            self._replace(self._outbox)

    def _work(self, outbox: Outbox) -> None:
        outbox.refresh()
        if self._held and time.monotonic() >= self._retry_at_s:
            self._save(outbox)
        self._transmit(outbox)
        self._tally.dropped(UNREADABLE, outbox.take_unreadable())
        self._forget_acknowledged(outbox)
        self._measure(outbox)

    def _save(self, outbox: Outbox) -> None:
        """Commit what was taken from the queue; a full disk leaves it in memory for later."""
        entries = [entry for events in self._held for entry in events]
        try:
            evicted = outbox.add(entries, delete=self._acked, keep=self._on_wire())
        except sqlite3.Error as error:
            if is_broken(error):
                raise
            self._disk_refuses(error)
            self._pause()
            return
        self._acked.clear()
        self._held.clear()
        self._backoff_s = 0.0
        self._disk_takes()
        self._tally.count("accepted", len(entries))
        self._tally.dropped("outbox_full", evicted)

    def _forget_acknowledged(self, outbox: Outbox) -> None:
        """Where new alerts come in, their commit does this too."""
        more_comes = self._queue.qsize() and len(self._acked) < MOST_ACKED
        if not self._acked or more_comes or time.monotonic() < self._forget_at_s:
            return
        try:
            outbox.add([], delete=self._acked)
        except sqlite3.Error as error:
            if is_broken(error):
                raise
            self._disk_refuses(error)  # they stay in ``_acked`` and are not sent again
            self._forget_at_s = time.monotonic() + FORGET_PAUSE_S
        else:
            self._acked.clear()
            self._disk_takes()

    def _disk_refuses(self, error: sqlite3.Error) -> None:
        self._tally.count(f"retried.{type(error).__name__}")
        if "disk" not in self._told_down:
            self._told_down.add("disk")
            log.warning("sink %s: the outbox %s cannot be written", self.name, self._path)

    def _disk_takes(self) -> None:
        if "disk" in self._told_down:
            self._told_down.discard("disk")
            log.warning("sink %s: the outbox %s can be written again", self.name, self._path)

    def _replace(self, outbox: Outbox) -> None:
        """Go on with a fresh file; only what is still in memory is carried over.

        Where no fresh one can be had, a later step opens the outbox anew, as a start does.
        """
        on_wire = [row for row in self._recall() if row.row_id not in self._acked]
        lost = max(0, outbox.events - len(self._acked) - len(on_wire))
        self._acked.clear()
        self._carried += [row.entry() for row in on_wire]
        self._tally.dropped("outbox_damaged", lost)
        try:
            self._tell_damaged(outbox.renew())
            outbox.keep_fact(EPOCH, sequence_epoch())
            self._measure(outbox)
        except (OSError, sqlite3.Error):
            self._outbox = None
            self._events = self._bytes = 0
            outbox.close()
            raise

    def _tell_damaged(self, aside: Path) -> None:
        self._tally.count("outbox_damaged")
        log.error(
            "sink %s: the outbox was damaged; it is %s now, and a fresh one was made. What was"
            " waiting in it was not sent: see `nae-monitor alerts resend --from`",
            self.name,
            aside,
        )

    def _finish(self) -> None:
        """Commit what is still queued, then let go of the far end and the file; rows stay."""
        outbox = self._outbox
        if outbox is None:
            return
        try:
            self._drain(outbox)
            self._let_go(outbox)
            self._forget_acknowledged(outbox)
            self._measure(outbox)
        finally:
            self._outbox = None
            outbox.close()

    @abstractmethod
    def _let_go(self, outbox: Outbox) -> None:
        """Release the far end, and note what it still acknowledged."""

    def _drain(self, outbox: Outbox) -> None:
        while self._pending() > self._events:
            self._take_all()
            self._save(outbox)
            self._measure(outbox)
            if self._held:  # the disk does not take them
                return
