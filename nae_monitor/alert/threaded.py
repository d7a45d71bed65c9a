"""A sink with a bounded queue and a thread of its own, so that emitting never waits."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from nae_monitor.alert.privacy import ContentPolicy, RedactedAlert
from nae_monitor.alert.sink import Tally
from nae_monitor.health import Health
from nae_monitor.records import Alert

BATCH_ALERTS = 50
IDLE_WAIT_S = 0.25
CLOSING_WAIT_S = 0.01
FINISH_SHARE = 0.2  # of the deadline, kept for letting go of files and connections
BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 5.0

Held = TypeVar("Held")
_ALIVE: weakref.WeakSet[ThreadedSink[Any]] = weakref.WeakSet()


class ThreadedSink(ABC, Generic[Held]):
    """Queue, thread and accounting. Two threads share nothing but the queue and the tally.

    ``Held`` is what an alert from the queue is kept as: it holds no content that the privacy
    setting forbids.
    """

    batch_alerts = BATCH_ALERTS

    def __init__(self, name: str, policy: ContentPolicy, health: Health, queue_events: int) -> None:
        self.name = name
        self._policy = policy
        self._health = health
        self._queue_events = queue_events
        self._closing = threading.Event()
        self._start_afresh()
        _ALIVE.add(self)

    def _start_afresh(self) -> None:
        """State that belongs to one process; runs again in a forked child."""
        self._tally = Tally(self.name, self._health)
        # Put without a lock in Python: a caller never waits for a thread that holds one.
        self._queue: queue.SimpleQueue[Alert] = queue.SimpleQueue()
        self._held: deque[Held] = deque()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._backoff_s = 0.0
        self._retry_at_s = 0.0
        self._stop_at_s = float("inf")

    @abstractmethod
    def _prepared(self, alert: Alert) -> Held:
        """What to keep of an alert; on this sink's thread."""

    @abstractmethod
    def _step(self) -> None:
        """Do what can be done now with ``_held``; on this sink's thread, again and again."""

    @abstractmethod
    def _finish(self) -> None:
        """Release resources, at the end of this sink's thread."""

    def emit(self, alert: Alert) -> None:
        """Put the alert on the queue; this sink's thread redacts it before anything else.

        The bound of the queue is kept to within the number of threads that emit at once.
        """
        component = f"alert.{self.name}.emit"
        with self._health.guard(component):
            if self._closing.is_set() or self._health.is_open(component):
                self._tally.dropped("closed" if self._closing.is_set() else "circuit_open")
                return
            if self._queue.qsize() >= self._queue_events:
                self._tally.dropped("queue_full")
                return
            self._queue.put(alert)
            self._queued()
            self._ensure_thread()

    def _queued(self) -> None:
        """An alert is on the queue: here it counts as accepted."""
        self._tally.count("accepted")

    def _pending(self) -> int:
        return self._queue.qsize() + len(self._held)

    def stats(self) -> Mapping[str, int]:
        """Counts of this process; see :class:`~nae_monitor.alert.sink.Sink`."""
        return self._tally.stats(self._pending())

    def close(self, deadline_s: float) -> bool:
        """Wait for the thread to empty the queue, at most about ``deadline_s``."""
        self._stop_at_s = time.monotonic() + deadline_s * (1 - FINISH_SHARE)
        self._closing.set()
        thread = self._thread
        if thread is not None:
            thread.join(deadline_s)
            if thread.is_alive():  # stuck in a call that does not return; it is a daemon
                return False
        return self._all_delivered()

    def _all_delivered(self) -> bool:
        return not self._pending() and self._tally["delivered"] >= self._tally["accepted"]

    def _ensure_thread(self) -> None:
        if self._thread is not None:
            return
        with self._start_lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=f"nae-{self.name}", daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        while not self._is_over():
            self._take()
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - a dead thread would lose every later alert
                self._tally.failed(error)
                self._pause()
        with self._health.guard(f"alert.{self.name}.close"):
            self._finish()

    def _is_over(self) -> bool:
        if not self._closing.is_set():
            return False
        return not self._pending() or time.monotonic() >= self._stop_at_s

    def _take(self) -> None:
        """Move up to a batch from the queue, waiting only if there is nothing else to do."""
        wait_s = self._wait_s()
        while len(self._held) < self.batch_alerts:
            try:
                self._hold(self._queue.get(block=wait_s > 0, timeout=wait_s or None))
            except queue.Empty:
                return
            wait_s = 0.0
        if wait_s:  # a full batch waits out its pause
            time.sleep(wait_s)

    def _take_all(self) -> None:
        """Move everything from the queue, without waiting."""
        while not self._queue.empty():
            self._hold(self._queue.get_nowait())

    def _hold(self, alert: Alert) -> None:
        try:
            self._held.append(self._prepared(alert))
        except Exception as error:  # noqa: BLE001 - one alert must not cost the others
            self._tally.failed(error)
            self._tally.dropped("failed")

    def _wait_s(self) -> float:
        """How long the thread may sleep for a new alert."""
        longest_s = CLOSING_WAIT_S if self._closing.is_set() else IDLE_WAIT_S
        if not self._held:
            return longest_s
        return min(longest_s, max(0.0, self._retry_at_s - time.monotonic()))

    def _pause(self) -> None:
        self._backoff_s = min(BACKOFF_LAST_S, max(BACKOFF_FIRST_S, self._backoff_s * 2))
        self._retry_at_s = time.monotonic() + self._backoff_s


class RetryingSink(ThreadedSink[RedactedAlert]):
    """Delivers from memory: what :meth:`_deliver` could not take stays at the front, in order.

    It is tried again with growing pauses; meanwhile the queue fills and, at its bound, new
    alerts are dropped and counted.
    """

    def _prepared(self, alert: Alert) -> RedactedAlert:
        return self._policy.redact(alert)

    @abstractmethod
    def _deliver(self, alerts: Sequence[RedactedAlert]) -> int:
        """Deliver from the front, in order; on this sink's thread.

        Returns:
            how many were delivered. Fewer than all means: try the rest again later.

        Raises:
            OSError: none were; try again later.
            Exception: the first alert can never be delivered; it is dropped and counted.
        """

    def _delivered(self, alerts: int) -> None:
        """Count what :meth:`_deliver` reported."""
        self._tally.count("delivered", alerts)

    def _step(self) -> None:
        if not self._held or time.monotonic() < self._retry_at_s:
            return
        try:
            done = self._deliver(tuple(self._held))
        except OSError as error:
            self._tally.count(f"retried.{type(error).__name__}")
            self._pause()
            return
        except Exception:
            self._held.popleft()
            self._tally.dropped("failed")
            raise
        for _ in range(done):
            self._held.popleft()
        self._delivered(done)
        if self._held:
            self._pause()
        else:
            self._backoff_s = 0.0


def _renew_in_child() -> None:
    """The parent's threads and queues do not exist in a forked child; its locks may be held."""
    for sink in list(_ALIVE):
        with contextlib.suppress(OSError):  # one sink's descriptor must not cost the others
            sink._start_afresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
