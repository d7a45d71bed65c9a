"""Alerts on a Kafka topic, at least once from the outbox on.

The client's own buffer has no bound, and a producer may go quiet for ever. So: a cap on records in
flight here, one request in flight for the order, and a watchdog that replaces the producer.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kafka.errors import (
    InvalidRecordError,
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)

from nae_monitor.alert.durable import DurableSink
from nae_monitor.alert.event import redacted_event
from nae_monitor.alert.kafka_address import outbox_path
from nae_monitor.alert.kafka_producer import connect, discard, unknown_topics
from nae_monitor.alert.kafka_side_events import Heart, dead_letter
from nae_monitor.alert.kafka_topics import RouteTopics
from nae_monitor.alert.outbox import Outbox
from nae_monitor.alert.outbox_rows import Entry, Row
from nae_monitor.alert.privacy import ContentPolicy
from nae_monitor.alert.sink import log
from nae_monitor.alert.threaded import BACKOFF_LAST_S
from nae_monitor.health import Health
from nae_monitor.records import Alert
from nae_monitor.sink_settings import KafkaSettings

MAX_IN_FLIGHT_RECORDS = 1000
DELIVERY_TIMEOUT_S = 10.0
CLOSE_PRODUCER_S = 0.3
# Of the event: no broker will ever take it.
REFUSED = (
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    InvalidRecordError,
    PolicyViolationError,
)
# Of the topic: no event may go there, for now.
CLOSED_TOPIC = (TopicAuthorizationFailedError, InvalidTopicError)
_ABANDONED: list[object] = []  # a parent's producers: closing them in a fork could hurt it


@dataclass(frozen=True, slots=True)
class _Flight:
    """A row on its way; ``future`` is kafka-python's."""

    row: Row
    future: Any
    sent_at_s: float
    topic: str


class KafkaSink(DurableSink):
    """CloudEvents in binary mode around OCSF findings; see :class:`DurableSink` for what is kept.

    What brokers refuse for good goes to the rejected rows of the outbox, and to the dead-letter
    topic where one is configured.
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
            OSError: the outbox cannot be written, or is something else.
            sqlite3.Error: SQLite cannot use it.
        """
        self._settings = settings
        self._delivery_timeout_s = delivery_timeout_s
        self._producer: Any = None
        super().__init__(
            name,
            policy,
            health,
            queue_events=settings.queue_events,
            path=outbox_path(settings),
            max_bytes=settings.outbox_bytes,
        )

    def _start_afresh(self) -> None:
        _ABANDONED.append(self._producer)
        self._producer = None
        self._in_flight: dict[int, _Flight] = {}  # by row, in the order of sending
        self._cursor = 0  # rows up to here are acknowledged, in flight or gone
        self._topics = RouteTopics(self._settings)
        self._heart = Heart(self._health, self._settings.heartbeat_s)
        self._beat: Any = None  # the future of a heartbeat on its way
        self._unheard_since_s: float | None = None  # since when no send could begin
        super()._start_afresh()

    @property
    def _far_end(self) -> str:
        return self._settings.bootstrap

    def _prepared(self, alert: Alert) -> list[Entry]:
        """The alert's event, once for each topic that its routes lead to."""
        entry = Entry.of(redacted_event(alert, self._policy), self._policy.mode)
        topics = self._topics.of_routes(alert.routes)
        return [entry if topic == "" else replace(entry, topic=topic) for topic in topics]

    def _transmit(self, outbox: Outbox) -> None:
        self._settle(outbox)
        if time.monotonic() >= self._send_at_s:
            self._send(outbox)
            self._send_heartbeat()

    def _on_wire(self) -> frozenset[int]:
        return frozenset(self._in_flight)

    @property
    def _is_sending(self) -> bool:
        return bool(self._in_flight)

    def _recall(self) -> list[Row]:
        rows = [flight.row for flight in self._in_flight.values()]
        self._discard_producer(0.0)
        self._in_flight.clear()
        self._cursor = 0
        return rows

    def _settle(self, outbox: Outbox) -> None:
        """Note what was acknowledged; start over where the producer failed."""
        failed: Exception | None = None
        acknowledged: list[_Flight] = []
        try:
            for flight in [flight for flight in self._in_flight.values() if flight.future.is_done]:
                del self._in_flight[flight.row.row_id]
                error = flight.future.exception
                if error is None:
                    acknowledged.append(flight)
                elif isinstance(error, REFUSED):
                    self._refuse(outbox, flight.row, error)
                elif isinstance(error, CLOSED_TOPIC):
                    self._send_again(flight.row)
                    self._leave_topic(flight.topic, error)
                else:
                    self._send_again(flight.row)
                    failed = error
        finally:  # a disk that takes no refusal must not make good alerts go twice
            self._acknowledged(acknowledged)
        oldest = next(iter(self._in_flight.values()), None)
        if failed is not None:
            self._start_over(failed)
        elif oldest is not None and self._is_overdue(oldest.sent_at_s):
            self._start_over(TimeoutError())
        if self._beat is not None and self._beat.is_done:
            if self._beat.exception is None:
                self._is_up()
            self._beat = None

    def _acknowledged(self, flights: Sequence[_Flight]) -> None:
        if not flights:
            return
        self._acked.update(flight.row.row_id for flight in flights)
        for topic in {flight.topic for flight in flights}:
            self._topics.acknowledged(topic)
        dead_topic = self._settings.dead_letter_topic
        dead = sum(f.row.topic == dead_topic for f in flights) if dead_topic else 0
        self._tally.count("dead_lettered", dead)
        self._tally.count("delivered", len(flights) - dead)
        self._is_up()

    def _send_again(self, row: Row) -> None:
        self._cursor = min(self._cursor, row.row_id - 1)

    def _leave_topic(self, topic: str, error: Exception) -> None:
        """A route's topic is left for a while; without the sink's own there is only waiting."""
        if topic == self._settings.topic:
            self._pause_sending(type(error).__name__)
        elif self._topics.refused(topic):
            log.warning(
                "sink %s: topic %s refuses this client (%s); what is meant for it goes to %s",
                self.name,
                topic,
                type(error).__name__,
                self._settings.topic,
            )

    def _send(self, outbox: Outbox) -> None:
        room = MAX_IN_FLIGHT_RECORDS - len(self._in_flight)
        if room <= 0:
            return
        known = {i for i in (*self._in_flight, *self._acked) if i > self._cursor}
        for row in outbox.after(self._cursor, room + len(known)):
            if row.row_id not in known and not self._send_row(outbox, row):
                return
            self._cursor = row.row_id

    def _send_row(self, outbox: Outbox, row: Row) -> bool:
        """Hand a row to the client; False where nothing can be sent now."""
        topic, detour = self._topics.now(row.topic)
        if detour and row.topic == self._settings.dead_letter_topic:
            outbox.reject(row.row_id, "dead_letter_topic_closed")
            return True
        try:
            future = self._client().send(topic, key=row.key, value=row.value, headers=row.headers)
        except REFUSED as error:
            self._refuse(outbox, row, error)
        except (KafkaError, OSError) as error:
            self._topics.failed(self._unreachable(topic))
            self._wait_for_brokers(error)
            return False
        else:
            self._unheard_since_s = None
            self._in_flight[row.row_id] = _Flight(row, future, time.monotonic(), topic)
            if detour:
                self._tally.count("rerouted")
        return True

    def _client(self) -> Any:
        if self._producer is None:
            self._producer = connect(self._settings, self._topics.names, self._delivery_timeout_s)
        return self._producer

    def _send_heartbeat(self) -> None:
        if not self._heart.is_due or self._beat is not None:
            return
        key, headers, value = self._heart.beat(self.stats())
        try:
            self._beat = self._client().send(
                self._settings.topic, key=key, value=value, headers=headers
            )
            self._tally.count("heartbeats")
        except (KafkaError, OSError) as error:
            self._wait_for_brokers(error)

    def _unreachable(self, topic: str) -> set[str]:
        """After a send to ``topic`` failed: the topics to which none could begin now."""
        if self._producer is None:
            return set(self._topics.names)
        return {topic, *unknown_topics(self._producer, self._topics.names)}

    def _refuse(self, outbox: Outbox, row: Row, error: Exception) -> None:
        reason, dead = type(error).__name__, self._settings.dead_letter_topic
        instead = None
        if dead is not None and row.topic != dead:
            instead = dead_letter(row, reason, row.topic or self._settings.topic, dead)
        try:
            gone = outbox.reject(row.row_id, reason, instead)
        except sqlite3.Error:
            self._send_again(row)
            self._send_at_s = time.monotonic() + BACKOFF_LAST_S
            raise
        self._tally.dropped("refused", int(row.topic != dead or dead is None))
        self._tally.count("rejected_forgotten", gone)

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
            self._pause_sending(type(error).__name__)

    def _is_overdue(self, since_s: float) -> bool:
        return time.monotonic() - since_s > self._delivery_timeout_s * 1.2

    def _start_over(self, error: Exception) -> None:
        """Throw the producer away and, after a pause, send again all that has no answer."""
        self._recall()
        self._beat = None
        self._unheard_since_s = None
        self._pause_sending(type(error).__name__)

    def _discard_producer(self, timeout_s: float) -> None:
        producer, self._producer = self._producer, None
        if producer is not None and (failure := discard(producer, timeout_s)):
            self._tally.count(f"producer_close.{failure}")

    def _let_go(self, outbox: Outbox) -> None:
        self._discard_producer(CLOSE_PRODUCER_S)
        self._settle(outbox)
