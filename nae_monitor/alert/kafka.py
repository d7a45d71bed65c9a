"""Alerts on a Kafka topic, at least once from the outbox on.

The client's own buffer has no bound, and a producer may go quiet for ever. So: a cap on records in
flight here, one request in flight for the order, and a watchdog that replaces the producer.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from kafka.errors import (
    InvalidRecordError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)

from nae_monitor.alert.event import AlertEvent, to_event
from nae_monitor.alert.kafka_address import outbox_path
from nae_monitor.alert.kafka_producer import connect, discard, unknown_topics
from nae_monitor.alert.kafka_topics import RouteTopics
from nae_monitor.alert.outbox import Outbox, Row
from nae_monitor.alert.privacy import ContentPolicy, RedactedAlert
from nae_monitor.alert.sink import log
from nae_monitor.alert.threaded import BACKOFF_FIRST_S, BACKOFF_LAST_S, ThreadedSink
from nae_monitor.health import Health
from nae_monitor.settings import KafkaSettings

MAX_IN_FLIGHT_RECORDS = 200
DELIVERY_TIMEOUT_S = 10.0
POLL_S = 0.01
CLOSE_PRODUCER_S = 0.3
REFUSED = (MessageSizeTooLargeError, RecordListTooLargeError, InvalidRecordError)
_ABANDONED: list[object] = []  # a parent's connections: closing them in a fork could hurt it


@dataclass(frozen=True, slots=True)
class _Flight:
    """A row on its way; ``future`` is kafka-python's."""

    row: Row
    future: Any
    sent_at_s: float
    topic: str


class KafkaSink(ThreadedSink):
    """``accepted`` means committed to the outbox, ``delivered`` acknowledged by the brokers.

    A broker that cannot be reached is no failure: alerts wait in the outbox, over restarts of
    this process too.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        policy: ContentPolicy,
        health: Health,
        *,
        delivery_timeout_s: float = DELIVERY_TIMEOUT_S,
        name: str = "kafka",
    ) -> None:
        """Open the outbox and start sending what an earlier process left in it.

        Raises:
            OSError: the outbox cannot be written.
            sqlite3.Error: the outbox file is something else.
        """
        self._settings = settings
        self._delivery_timeout_s = delivery_timeout_s
        self._outbox: Outbox | None = None
        self._producer: Any = None
        super().__init__(name, policy, health, settings.queue_events)
        self._outbox = self._open_outbox()
        self._ensure_thread()

    def _start_afresh(self) -> None:
        _ABANDONED.extend(x for x in (self._outbox, self._producer) if x is not None)
        if self._outbox is not None:
            self._outbox.let_go()
        self._outbox = self._producer = None
        self._in_flight: deque[_Flight] = deque()
        self._cursor = 0  # rows up to here are acknowledged or in flight
        self._acked: set[int] = set()  # acknowledged, not yet deleted
        self._topics = RouteTopics(self._settings)
        self._depth = 0
        self._is_down = False
        self._send_at_s = 0.0
        self._send_pause_s = 0.0
        self._unheard_since_s: float | None = None  # since when no send could begin
        super()._start_afresh()

    def _open_outbox(self) -> Outbox:
        outbox = Outbox(outbox_path(self._settings), self._settings.outbox_events)
        self._tally.count("accepted", outbox.recovered)
        self._tally.count("recovered", outbox.recovered)
        self._depth = outbox.depth()
        return outbox

    def _queued(self) -> None:
        """On the queue is not accepted yet: the outbox's commit is."""

    def _pending(self) -> int:
        return super()._pending() + self._depth

    def _step(self) -> None:
        if self._outbox is None:
            self._outbox = self._open_outbox()
        if self._held and time.monotonic() >= self._retry_at_s:
            self._save(self._outbox)
        self._settle(self._outbox)
        if time.monotonic() >= self._send_at_s:
            self._send(self._outbox)

    def _wait_s(self) -> float:
        usual_s = super()._wait_s()
        if self._in_flight:
            return min(usual_s, POLL_S)
        if self._depth:
            return min(usual_s, max(POLL_S / 10, self._send_at_s - time.monotonic()))
        return usual_s

    def _save(self, outbox: Outbox) -> None:
        """Commit what was taken from the queue; a full disk leaves it in memory for later."""
        events: list[AlertEvent] = []
        made = 0
        while made < len(self._held):
            try:
                events += self._events(self._held[made])
                made += 1
            except (ValueError, TypeError, OverflowError):
                del self._held[made]
                self._tally.dropped("failed")
        try:
            evicted = outbox.add(events, keep_up_to=self._cursor)
            self._depth = outbox.depth()
        except sqlite3.Error as error:
            self._tally.count(f"retried.{type(error).__name__}")
            self._pause()
            return
        self._held.clear()
        self._backoff_s = 0.0
        self._tally.count("accepted", len(events))
        self._tally.dropped("outbox_full", evicted)

    def _events(self, alert: RedactedAlert) -> list[AlertEvent]:
        """The alert's event, once for each topic that its routes lead to."""
        event = to_event(alert, self._policy)
        return [replace(event, topic=topic) for topic in self._topics.of_routes(alert.routes)]

    def _settle(self, outbox: Outbox) -> None:
        """Forget rows that were acknowledged; start over where the producer failed."""
        flights, self._in_flight = self._in_flight, deque()
        failed: Exception | None = None
        refused: list[tuple[Row, Exception]] = []
        for flight in flights:
            error = flight.future.exception
            if not flight.future.is_done:
                self._in_flight.append(flight)
            elif error is None:
                self._acked.add(flight.row.row_id)
                self._topics.acknowledged(flight.topic)
                self._tally.count("delivered")
            elif isinstance(error, REFUSED):
                refused.append((flight.row, error))
            else:
                failed = error
        for row, error in refused:
            self._refuse(outbox, row, error)
        self._forget_acknowledged(outbox)
        if failed is not None:
            self._start_over(failed)
        elif self._in_flight and self._is_overdue(self._in_flight[0].sent_at_s):
            self._start_over(TimeoutError())

    def _forget_acknowledged(self, outbox: Outbox) -> None:
        if self._acked:
            outbox.delete(sorted(self._acked))
            self._acked.clear()
            self._depth = outbox.depth()
            self._is_up()

    def _send(self, outbox: Outbox) -> None:
        room = MAX_IN_FLIGHT_RECORDS - len(self._in_flight)
        for row in outbox.after(self._cursor, room):
            if row.row_id in self._acked:
                continue
            topic, detour = self._topics.now(row.topic)
            try:
                if self._producer is None:
                    self._producer = connect(
                        self._settings.bootstrap, self._topics.names, self._delivery_timeout_s
                    )
                future = self._producer.send(
                    topic, key=row.key, value=row.value, headers=row.headers
                )
            except REFUSED as error:
                self._refuse(outbox, row, error)
            except (KafkaError, OSError) as error:
                self._topics.failed(self._unreachable(topic))
                self._wait_for_brokers(error)
                return
            else:
                self._unheard_since_s = None
                self._in_flight.append(_Flight(row, future, time.monotonic(), topic))
                self._tally.count("rerouted", int(detour))
            self._cursor = row.row_id

    def _unreachable(self, topic: str) -> set[str]:
        """After a send to ``topic`` failed: the topics to which none could begin now."""
        if self._producer is None:
            return set(self._topics.names)
        return {topic, *unknown_topics(self._producer, self._topics.names)}

    def _refuse(self, outbox: Outbox, row: Row, error: Exception) -> None:
        outbox.reject(row.row_id, type(error).__name__)
        self._depth = outbox.depth()
        self._tally.dropped("refused")

    def _wait_for_brokers(self, error: Exception) -> None:
        """No send could begin: pause, and let the producer go on asking, up to the usual time.

        On a busy machine an answer can take longer than a send may wait; a new producer for each
        trial would never hear it.
        """
        if self._unheard_since_s is None:
            self._unheard_since_s = time.monotonic()
        if not isinstance(error, KafkaTimeoutError) or self._is_overdue(self._unheard_since_s):
            self._start_over(error)
        else:
            self._pause_sending(error)

    def _is_overdue(self, since_s: float) -> bool:
        return time.monotonic() - since_s > self._delivery_timeout_s * 1.2

    def _start_over(self, error: Exception) -> None:
        """Throw the producer away and, after a pause, send again all that has no answer."""
        self._discard_producer(0.0)
        self._unheard_since_s = None
        self._in_flight.clear()
        self._cursor = 0
        self._pause_sending(error)

    def _pause_sending(self, error: Exception) -> None:
        self._tally.count(f"retried.{type(error).__name__}")
        self._send_pause_s = min(BACKOFF_LAST_S, max(BACKOFF_FIRST_S, self._send_pause_s * 2))
        self._send_at_s = time.monotonic() + self._send_pause_s
        if not self._is_down:
            self._is_down = True
            log.warning(
                "sink %s: %s does not take alerts; they wait in the outbox",
                self.name,
                self._settings.bootstrap,
            )

    def _is_up(self) -> None:
        self._send_pause_s = 0.0
        if self._is_down:
            self._is_down = False
            log.warning("sink %s: %s takes alerts again", self.name, self._settings.bootstrap)

    def _discard_producer(self, timeout_s: float) -> None:
        producer, self._producer = self._producer, None
        if producer is not None and (failure := discard(producer, timeout_s)):
            self._tally.count(f"producer_close.{failure}")

    def _finish(self) -> None:
        """Commit what is still queued, then let go of broker and file; rows stay."""
        outbox = self._outbox
        if outbox is None:
            return
        try:
            self._drain(outbox)
            self._discard_producer(CLOSE_PRODUCER_S)
            self._settle(outbox)
        finally:
            self._outbox = None
            outbox.close()

    def _drain(self, outbox: Outbox) -> None:
        while self._pending() > self._depth:
            while not self._queue.empty():
                self._held.append(self._queue.get_nowait())
            self._save(outbox)
            if self._held:  # the disk does not take them
                return
