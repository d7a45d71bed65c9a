"""Read alerts back: from a JSON Lines file, or from a Kafka topic.

Both are untrusted input: what is no alert event is skipped and counted, never raised.
"""

from __future__ import annotations

import json
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kafka import KafkaConsumer

from nae_monitor.alert.kafka_address import servers
from nae_monitor.alert.kafka_producer import API_VERSION
from nae_monitor.errors import InputDataError

MAX_LINE_BYTES = 4 * 1024 * 1024
REMEMBERED_IDS = 100_000
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class ReadAlert:
    """One alert event as it came in."""

    source: str  # CloudEvents source
    id: str  # CloudEvents id; unique with source
    key: str  # conversation id, or its keyed hash
    sequence: str  # sorts as text within a key
    time: str  # RFC 3339
    severity: str
    attributes: Mapping[str, Any]  # every CloudEvents attribute
    data: Mapping[str, Any]  # the OCSF Detection Finding


class JsonlTail:
    """Iterates over the alerts of one file, oldest first.

    ``skipped`` counts the lines that are no alert events: a last line torn by a crash, or the
    end of one that a restart closed. With ``follow`` it never ends by itself: it waits for
    further lines, and goes over to the new file when the sink rotates.
    """

    def __init__(self, path: Path | str, *, follow: bool = False) -> None:
        self._path = Path(path)
        self._follow = follow
        self.skipped = 0

    def __iter__(self) -> Iterator[ReadAlert]:
        """Read the file from its start.

        Raises:
            InputDataError: the file cannot be read.
        """
        try:
            while True:
                with self._path.open("rb") as file:
                    yield from self._read(file)
                if not self._follow:
                    return
        except OSError as error:
            raise InputDataError(f"{self._path}: cannot be read: {error.strerror}") from error

    def _read(self, file: BinaryIO) -> Iterator[ReadAlert]:
        while True:
            ended = not self._follow or self._was_replaced(file)  # asked before the last read
            start = file.tell()
            line = file.readline(MAX_LINE_BYTES)
            if not ended and len(line) < MAX_LINE_BYTES and not line.endswith(b"\n"):
                file.seek(start)  # nothing yet, or a line half-written
                time.sleep(POLL_S)
                continue
            if not line:
                return
            alert = _from_json(line)
            if alert is not None:
                yield alert
            elif line.strip():
                self.skipped += 1

    def _was_replaced(self, file: BinaryIO) -> bool:
        """Whether the path is another file by now, or this one was cut."""
        try:
            there = self._path.stat()
        except FileNotFoundError:  # between the two renames of a rotation
            return False
        return there.st_ino != os.fstat(file.fileno()).st_ino or there.st_size < file.tell()


class KafkaTail:
    """Iterates over the alerts of a topic from the group's place, or from the oldest.

    Repeats (same source and id among the last 100,000) are dropped. Alerts are held for
    ``reorder_s`` and come out in the order of their sequence within a key; one that was delayed
    for longer than that comes out when it comes. Ends when nothing arrived for ``timeout_s``,
    not counting the time it takes to join the group. With a group, a place is committed only
    after its alerts were handed out and the next one was asked for: a reader that dies sees its
    last alerts again.
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
    ) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._group = group
        self._timeout_s = timeout_s
        self._reorder_s = reorder_s
        self._session_timeout_s = session_timeout_s
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        self.skipped = 0
        self.repeats = 0

    def __iter__(self) -> Iterator[ReadAlert]:
        """Join, read until the topic is quiet, leave.

        Raises:
            InputDataError: no broker could be asked for the topic.
        """
        consumer = self._connect()
        try:
            yield from self._read(consumer)
        finally:
            consumer.close(autocommit=False)

    def _read(self, consumer: Any) -> Iterator[ReadAlert]:
        held: list[ReadAlert] = []
        last_s = held_since_s = time.monotonic()
        while True:
            records = consumer.poll(timeout_ms=int(POLL_S * 1000))
            now_s = time.monotonic()
            if records:
                last_s = now_s
                held_since_s = held_since_s if held else now_s
                held += self._fresh(records)
            quiet = now_s - last_s >= self._timeout_s + self._joining_s(consumer)
            if held and (quiet or now_s - held_since_s >= self._reorder_s):
                yield from in_order(held)
                held = []
                if self._group is not None:
                    consumer.commit()
            if quiet:
                if not consumer.assignment():
                    raise InputDataError(
                        f"{self._bootstrap}: no broker gave a place on topic {self._topic}"
                        " (is it running, and does it let this client read?)"
                    )
                return

    def _joining_s(self, consumer: Any) -> float:
        return 0.0 if consumer.assignment() else self._session_timeout_s

    def _fresh(self, records: Mapping[Any, list[Any]]) -> list[ReadAlert]:
        alerts = []
        for record in (r for batch in records.values() for r in batch):
            alert = _from_record(record)
            if alert is None:
                self.skipped += 1
            elif (alert.source, alert.id) in self._seen:
                self.repeats += 1
            else:
                self._seen[alert.source, alert.id] = None
                alerts.append(alert)
        while len(self._seen) > REMEMBERED_IDS:
            self._seen.popitem(last=False)
        return alerts

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
        )


def consume_kafka(
    bootstrap: str, topic: str, *, group: str | None = None, timeout_s: float = 10.0
) -> Iterator[ReadAlert]:
    """The alerts of a topic until none came for ``timeout_s``; see :class:`KafkaTail`."""
    return iter(KafkaTail(bootstrap, topic, group=group, timeout_s=timeout_s))


def in_order(alerts: list[ReadAlert]) -> list[ReadAlert]:
    """Sort by sequence within each key; keys keep the places their alerts had."""
    by_key: dict[str, list[ReadAlert]] = {}
    for alert in alerts:
        by_key.setdefault(alert.key, []).append(alert)
    ordered = {key: iter(sorted(a, key=lambda x: x.sequence)) for key, a in by_key.items()}
    return [next(ordered[alert.key]) for alert in alerts]


def _from_json(line: bytes) -> ReadAlert | None:
    value = _parse(line)
    if not isinstance(value, dict):
        return None
    data = value.pop("data", None)
    return _read_alert(value, data)


def _from_record(record: Any) -> ReadAlert | None:
    if record.value is None:
        return None
    attributes = {
        name[3:]: (value or b"").decode("utf-8", "replace")
        for name, value in record.headers
        if name.startswith("ce_")
    }
    return _read_alert(attributes, _parse(record.value))


def _read_alert(attributes: dict[str, Any], data: Any) -> ReadAlert | None:
    names = ("source", "id", "partitionkey", "sequence", "time", "severitytext")
    if not isinstance(data, dict) or not all(isinstance(attributes.get(n), str) for n in names):
        return None
    return ReadAlert(
        source=attributes["source"],
        id=attributes["id"],
        key=attributes["partitionkey"],
        sequence=attributes["sequence"],
        time=attributes["time"],
        severity=attributes["severitytext"].lower(),
        attributes=attributes,
        data=data,
    )


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
