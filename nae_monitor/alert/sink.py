"""What an alert sink promises, and the tally every sink keeps."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from nae_monitor.health import Health
from nae_monitor.records import Alert

log = logging.getLogger("nae_monitor.alert")


@runtime_checkable
class Sink(Protocol):
    """A place alerts go.

    Order: alerts are delivered in the order they were emitted; after a failed transmission a
    sink may repeat alerts, never skip one it accepted. Threads: ``emit`` may be called from any
    thread at once. After ``fork`` the child's sink starts afresh at its first ``emit``.
    """

    def emit(self, alert: Alert) -> None:
        """Take one alert. Never waits longer than a ``put_nowait`` and never raises.

        An alert that cannot be taken is dropped and counted by reason. Content (prompt, output,
        explanation, matched text, token) leaves only as the privacy setting allows.
        """

    def close(self, deadline_s: float) -> bool:
        """Deliver what was accepted, release everything, and return within about the deadline.

        Returns:
            True if every accepted alert was delivered. Closing twice is harmless; alerts that
            come after the first call are dropped as ``closed``.
        """

    def stats(self) -> Mapping[str, int]:
        """``accepted``, ``delivered``, ``pending`` and ``dropped.REASON``, in alerts."""


class Tally:
    """Counts of one sink, mirrored into :class:`Health` as ``alert.SINK.NAME``. Thread-safe."""

    def __init__(self, sink: str, health: Health) -> None:
        self._sink = sink
        self._health = health
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def count(self, name: str, alerts: int = 1) -> None:
        """Add to ``accepted``, ``delivered`` or another name; zero is no event."""
        if alerts:
            with self._lock:
                self._counts[name] += alerts
            self._health.count(f"alert.{self._sink}.{name}", alerts)

    def dropped(self, reason: str, alerts: int = 1) -> None:
        """Count lost alerts; the first of each reason is also logged."""
        if not alerts:
            return
        if not self[f"dropped.{reason}"]:
            log.warning("sink %s drops alerts: %s; see its counters", self._sink, reason)
        self.count(f"dropped.{reason}", alerts)

    def failed(self, error: Exception) -> None:
        """Count an unforeseen failure by type; messages may quote content and are not logged."""
        name = f"failed.{type(error).__name__}"
        if not self[name]:
            log.warning("sink %s: %s; it goes on", self._sink, type(error).__name__)
        self.count(name)

    def __getitem__(self, name: str) -> int:
        with self._lock:
            return self._counts[name]

    def stats(self, pending: int) -> dict[str, int]:
        """Every count, with ``accepted`` and ``delivered`` always there."""
        with self._lock:
            return {"accepted": 0, "delivered": 0, **self._counts, "pending": pending}
