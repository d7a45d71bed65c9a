"""What goes over the wire beside alerts: heartbeats, and events for the dead-letter topic."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from nae_monitor.alert.event import (
    sequence_epoch,
    sequence_text,
    to_json,
)
from nae_monitor.alert.event_rewriting import reduced
from nae_monitor.alert.ocsf import PACKAGE_VERSION
from nae_monitor.alert.outbox_rows import Entry, Row
from nae_monitor.health import Health

HEARTBEAT_TYPE = "io.nae_monitor.heartbeat.v1"
REASON_HEADER = "nae_dead_letter_reason"
TOPIC_HEADER = "nae_dead_letter_topic"
BYTES_HEADER = "nae_dead_letter_bytes"
WHOLE_BYTES = 256 * 1024  # of a dead letter's value; a larger one goes without its evidences
COUNTERS = ("tokens.", "dropped.", "alerts.", "alert.", "failed.", "actions.", "circuit_open.")


class Heart:
    """The heartbeats of one sink: that this process lives and can reach the brokers.

    They do not go through the outbox: an old heartbeat says nothing.
    """

    def __init__(self, health: Health, interval_s: float) -> None:
        self._health = health
        self._interval_s = interval_s
        self._instance = str(uuid.uuid4())
        self._started_s = time.monotonic()
        self._due_s = self._started_s + interval_s
        self._sequence = 0

    @property
    def is_due(self) -> bool:
        """Whether it is time for another."""
        return self._interval_s > 0 and time.monotonic() >= self._due_s

    def beat(self, stats: Mapping[str, int]) -> tuple[bytes, list[tuple[str, bytes]], bytes]:
        """Key, headers and value of the next one; ``stats`` are the sink's own."""
        self._due_s = time.monotonic() + self._interval_s
        self._sequence += 1
        attributes = {
            "specversion": "1.0",
            "id": f"{self._instance}/{self._sequence}",
            "source": f"/nae-monitor/instances/{self._instance}",
            "type": HEARTBEAT_TYPE,
            "time": datetime.now(UTC).isoformat(),
            "partitionkey": self._instance,
            "sequence": sequence_text(self._sequence),
        }
        headers = [(f"ce_{name}", value.encode()) for name, value in attributes.items()]
        value = to_json(self._data(stats))
        return (
            self._instance.encode(),
            [("content-type", b"application/json"), *headers],
            value,
        )

    def _data(self, stats: Mapping[str, int]) -> dict[str, Any]:
        counters = self._health.counters()
        off = sorted(self._health.open_circuits())
        return {
            "version": PACKAGE_VERSION,
            "interval_s": self._interval_s,
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            "started_unix_ns": sequence_epoch(),
            "switched_off": off,
            "sink": dict(stats),
            "counters": {n: c for n, c in sorted(counters.items()) if n.startswith(COUNTERS)},
        }


def dead_letter(row: Row, reason: str, meant_for: str, topic: str) -> Entry:
    """A refused event for ``topic``, saying why; one too large goes without its evidences."""
    more = {REASON_HEADER: reason, TOPIC_HEADER: meant_for, BYTES_HEADER: str(len(row.value))}
    return Entry(
        row.severity,
        row.key,
        [*row.headers, *((name, text.encode()) for name, text in more.items())],
        row.value if len(row.value) <= WHOLE_BYTES else reduced(row.value),
        topic,
        row.content,
    )
