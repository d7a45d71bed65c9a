"""Consume alerts from Kafka: each once, in order, and none lost by a reader that fails."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import CommitFailedError, RebalanceInProgressError

from nae_monitor.alert.kafka_address import servers
from nae_monitor.alert.kafka_producer import API_VERSION
from nae_monitor.alert.read_alert import ReadAlert, from_record
from nae_monitor.alert.window import AlertWindow
from nae_monitor.errors import InputDataError

POLL_S = 0.2


class KafkaTail:
    """Iterates over the alerts of a topic from the group's place, or from the oldest.

    Repeats (same source and id among the last 100,000 handled) are dropped. Alerts are held for
    ``reorder_s``, at most 10,000 of them, and come out in the order of their sequence within a
    key; one that was delayed for longer than that comes out when it comes. Ends when nothing
    arrived for ``timeout_s``, not counting the time it takes to join the group.

    At least once: with a group, a place is committed only after all alerts up to it were handed
    out and the next one was asked for. A reader that dies, or leaves the loop, sees its last
    alerts again.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        *,
        group: str | None = None,
        timeout_s: float = 10.0,
        reorder_s: float = 1.0,
        session_timeout_s: float = 6.0,
        window: AlertWindow | None = None,
        client: Mapping[str, Any] | None = None,
    ) -> None:
        """``client``: further options of kafka-python's consumer, such as those of TLS."""
        self._bootstrap = bootstrap
        self._topic = topic
        self._group = group
        self._timeout_s = timeout_s
        self._reorder_s = reorder_s
        self._session_timeout_s = session_timeout_s
        self._window = window or AlertWindow()
        self._client = dict(client or {})
        self.skipped = 0  # records that are no alerts: heartbeats, and what nobody here sent
        self.uncommitted = 0  # commits lost to a rebalance; their alerts may come again

    @property
    def repeats(self) -> int:
        """Alerts dropped because they had come before."""
        return self._window.repeats

    def __iter__(self) -> Iterator[ReadAlert]:
        """Join, read until the topic is quiet, leave.

        Raises:
            InputDataError: no broker could be asked for the topic, or an alert follows a
                contract that this package cannot read.
        """
        self._window.take()  # of an earlier round that was left: it comes again
        consumer = self._connect()
        try:
            yield from self._read(consumer)
        finally:
            consumer.close(autocommit=False)

    def _read(self, consumer: Any) -> Iterator[ReadAlert]:
        last_s = held_since_s = time.monotonic()
        had_place = False
        while True:
            records = consumer.poll(timeout_ms=int(POLL_S * 1000))
            now_s = time.monotonic()
            has_place = bool(consumer.assignment())
            if records or has_place != had_place:  # a silence begins where listening does
                last_s, had_place = now_s, has_place
            if records:
                held_since_s = held_since_s if len(self._window) else now_s
                self._take_in(records)
            joining_s = 0.0 if has_place else self._session_timeout_s
            quiet = now_s - last_s >= self._timeout_s + joining_s
            due = quiet or self._window.is_full or now_s - held_since_s >= self._reorder_s
            if due and len(self._window):
                for alert in self._window.take():
                    yield alert
                    self._window.handled(alert)
                self._commit(consumer)
            if quiet:
                if not has_place:
                    raise InputDataError(
                        f"{self._bootstrap}: no broker gave a place on topic {self._topic}"
                        " (is it running, and does it let this client read?)"
                    )
                return

    def _take_in(self, records: Mapping[Any, list[Any]]) -> None:
        for record in (r for batch in records.values() for r in batch):
            alert = from_record(record)
            if alert is None:
                self.skipped += 1
            else:
                self._window.add(alert)

    def _commit(self, consumer: Any) -> None:
        if self._group is None:
            return
        try:
            consumer.commit()
        except (CommitFailedError, RebalanceInProgressError):
            self.uncommitted += 1

    def _connect(self) -> Any:
        return KafkaConsumer(
            self._topic,
            bootstrap_servers=servers(self._bootstrap),
            group_id=self._group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            api_version=API_VERSION,
            session_timeout_ms=int(self._session_timeout_s * 1000),
            heartbeat_interval_ms=int(self._session_timeout_s * 150),
            reconnect_backoff_max_ms=1000,
            **self._client,
        )


def consume_kafka(
    bootstrap: str, topic: str, *, group: str | None = None, timeout_s: float = 10.0
) -> Iterator[ReadAlert]:
    """The alerts of a topic until none came for ``timeout_s``; see :class:`KafkaTail`."""
    return iter(KafkaTail(bootstrap, topic, group=group, timeout_s=timeout_s))
