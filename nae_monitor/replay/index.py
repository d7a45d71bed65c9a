"""The rows of recordings in (request id, position) order, in memory only a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nae_monitor.recording import RecordedActivation, Recording, RequestRecord
from nae_monitor.recording.parts import ActivationPart

ROW_OVERHEAD_BYTES = 2048  # texts and Python objects beside the vector, roughly


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One row in replay order, and the record of its request where it finished."""

    recorded: RecordedActivation
    recording: int  # index into the recordings
    request: RequestRecord | None


class RowIndex:
    """Twenty-odd bytes a row: which file and row holds the i-th row in replay order.

    Raises:
        RecordingError: any file that cannot be read.
    """

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self._recordings = recordings
        self._parts = [
            (number, part)
            for number, recording in enumerate(recordings)
            for part in recording.activation_parts
        ]
        self._request_parts = [
            (number, part)
            for number, recording in enumerate(recordings)
            for part in recording.request_parts
        ]
        self._order, self._of_part, self._of_row = _sorted_rows(self._parts)
        self._requests = self._find_requests()

    def __len__(self) -> int:
        return len(self._order)

    def _find_requests(self) -> dict[tuple[int, str], tuple[int, int]]:
        found: dict[tuple[int, str], tuple[int, int]] = {}
        for index, (number, part) in enumerate(self._request_parts):
            ids = part.table(["request_id"]).column(0).to_pylist()
            # A request id used twice keeps its last record.
            found.update({(number, name): (index, row) for row, name in enumerate(ids)})
        return found

    def pieces(self, piece_bytes: int) -> Iterator[list[Row]]:
        """Every row in order, as lists of at most about ``piece_bytes``."""
        width = max((recording.d_model for recording in self._recordings), default=1)
        size = max(1, piece_bytes // (4 * width + ROW_OVERHEAD_BYTES))
        for start in range(0, len(self._order), size):
            yield self._load(self._order[start : start + size])

    def _load(self, rows: Any) -> list[Row]:
        loaded: dict[int, tuple[RecordedActivation, int]] = {}
        for part_index in np.unique(self._of_part[rows]):
            wanted = np.sort(rows[self._of_part[rows] == part_index])
            number, part = self._parts[int(part_index)]
            taken = part.take([int(row) for row in self._of_row[wanted]])
            loaded.update(
                {int(row): (record, number) for row, record in zip(wanted, taken, strict=True)}
            )
        requests = self._load_requests(
            {(number, record.activation.request.request_id) for record, number in loaded.values()}
        )
        ordered = (loaded[int(row)] for row in rows)
        return [
            Row(record, number, requests.get((number, record.activation.request.request_id)))
            for record, number in ordered
        ]

    def _load_requests(self, keys: set[tuple[int, str]]) -> dict[tuple[int, str], RequestRecord]:
        by_part: dict[int, list[int]] = {}
        for key in keys & self._requests.keys():
            part_index, row = self._requests[key]
            by_part.setdefault(part_index, []).append(row)
        found: dict[tuple[int, str], RequestRecord] = {}
        for part_index, rows in by_part.items():
            number, part = self._request_parts[part_index]
            for record in self._recordings[number].requests_of(part, sorted(rows)):
                found[(number, record.request.request_id)] = record
        return found

    def requests(self) -> Iterator[tuple[int, RequestRecord]]:
        """Every request record that counts, one file in memory at a time, in recorded order."""
        for index, (number, part) in enumerate(self._request_parts):
            for row, record in enumerate(self._recordings[number].requests_of(part)):
                if self._requests[(number, record.request.request_id)] == (index, row):
                    yield number, record


def _sorted_rows(parts: Sequence[tuple[int, ActivationPart]]) -> tuple[Any, Any, Any]:
    """Row numbers in replay order, and for each row number its part and its row in there."""
    names: dict[str, int] = {}
    columns: list[tuple[Any, Any]] = []
    for _, part in parts:
        ids, positions = part.keys()
        numbers = [names.setdefault(name, len(names)) for name in ids]
        columns.append((np.array(numbers, np.int32), np.array(positions, np.int64)))
    rank = np.empty(len(names), np.int32)
    for order, name in enumerate(sorted(names)):
        rank[names[name]] = order
    counts = [len(ids) for ids, _ in columns]
    of_part = np.repeat(np.arange(len(columns), dtype=np.int32), counts)
    of_row = np.concatenate([np.arange(n, dtype=np.int32) for n in counts] or [np.empty(0, int)])
    requests = rank[np.concatenate([ids for ids, _ in columns] or [np.empty(0, np.int32)])]
    places = np.concatenate([column for _, column in columns] or [np.empty(0, np.int64)])
    # The last key sorts first; file and row break ties, so the order is total.
    return np.lexsort((of_row, of_part, places, requests)), of_part, of_row
