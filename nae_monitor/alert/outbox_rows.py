"""What an outbox holds, and the columns that it is stored in."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import orjson

from nae_monitor.alert.event import AlertEvent
from nae_monitor.alert.outbox_file import ROW_OVERHEAD_BYTES
from nae_monitor.alert.privacy import ContentMode


@dataclass(frozen=True, slots=True)
class Entry:
    """One event to keep. ``content`` is the privacy setting that its texts went through."""

    severity: int  # rank, 0 to 4: when the outbox is full, the lowest goes first
    key: bytes
    headers: Sequence[tuple[str, bytes]]
    value: bytes
    topic: str = ""  # "": the sink's own
    content: str = ""

    @classmethod
    def of(cls, event: AlertEvent, content: ContentMode) -> Entry:
        """An alert's event in the binary mode of CloudEvents."""
        rank, value = event.severity.rank, event.value()
        return cls(rank, event.key, event.headers(), value, event.topic, content)


@dataclass(frozen=True, slots=True)
class Row:
    """One event waiting for its acknowledgement."""

    row_id: int  # grows with the order of acceptance
    severity: int
    key: bytes
    headers: list[tuple[str, bytes]]
    value: bytes
    topic: str = ""
    content: str = ""
    size_bytes: int = 0

    def entry(self) -> Entry:
        """The same, to be kept anew."""
        return Entry(self.severity, self.key, self.headers, self.value, self.topic, self.content)


def packed(entry: Entry, added_unix_ns: int) -> tuple[int, bytes, str, bytes, int, str, str, int]:
    """The values of a row's columns, in their order."""
    headers = orjson.dumps([(name, value.decode()) for name, value in entry.headers]).decode()
    size_bytes = len(entry.key) + len(headers) + len(entry.value) + ROW_OVERHEAD_BYTES
    return (
        entry.severity,
        entry.key,
        headers,
        entry.value,
        added_unix_ns,
        entry.topic,
        entry.content,
        size_bytes,
    )


def row_of(row_id: int, entry: Entry, size_bytes: int) -> Row:
    """The row that an entry became."""
    headers = list(entry.headers)
    return Row(
        row_id,
        entry.severity,
        entry.key,
        headers,
        entry.value,
        entry.topic,
        entry.content,
        size_bytes,
    )


def unpacked_headers(text: str) -> list[tuple[str, bytes]]:
    """The headers of a row; ValueError, TypeError or AttributeError where it is damaged."""
    return [(name, value.encode()) for name, value in orjson.loads(text)]


def ranges(row_ids: Collection[int]) -> Iterator[tuple[int, int]]:
    """The same ids as unbroken runs, first and last of each."""
    in_order = sorted(row_ids)
    first = 0
    for place, row_id in enumerate(in_order):
        if place + 1 == len(in_order) or in_order[place + 1] > row_id + 1:
            yield in_order[first], row_id
            first = place + 1
