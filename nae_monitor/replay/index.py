"""The rows of recordings in (request id, position) order, in memory only a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nae_monitor.recording import RecordedActivation, Recording, RequestRecord
from nae_monitor.recording.parts import ActivationPart
from nae_monitor.records import Request
from nae_monitor.replay.kept import KeptRows
from nae_monitor.replay.selection import Selection

# Recording, request id and start: a request id has several turns where a conversation goes on.
_Turn = tuple[int, str, int]
ROW_OVERHEAD_BYTES = 2048  # texts and Python objects beside the vector, roughly


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One row in replay order, and the record of its request where it finished."""

    recorded: RecordedActivation
    recording: int  # index into the recordings
    request: RequestRecord | None


class RowIndex:
    """Twenty-odd bytes a row: which file and row holds the i-th row in replay order.

    ``kept`` is told of the rows that ``selection`` leaves out.

    Raises:
        RecordingError: any file that cannot be read.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        selection: Selection | None = None,
        kept: KeptRows | None = None,
    ) -> None:
        self._recordings = recordings
        self._selection = selection
        self._selected: set[tuple[int, str]] = set()  # requests with a row that is let through
        self._refused: set[tuple[int, str]] = set()  # those with one that is not
        masks = None if selection is None else self._select(recordings, selection, kept)
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
        if masks is not None:
            self._order = self._order[masks[self._order]]
        self._requests, self._latest = self._find_requests()

    def __len__(self) -> int:
        return len(self._order)

    def _select(
        self, recordings: Sequence[Recording], selection: Selection, kept: KeptRows | None
    ) -> Any:
        """Whether each row is let through, in the order of files and rows."""
        masks = [np.empty(0, bool)]
        for number, recording in enumerate(recordings):
            left_out: dict[tuple[str, int], list[int]] = {}
            for part in recording.activation_parts:
                mask, rows = selection.rows(number, part)
                masks.append(mask)
                for row, taken in zip(rows, mask, strict=True):
                    place = number, row["request_id"]
                    (self._selected if taken else self._refused).add(place)
                    if not taken:
                        turn = row["request_id"], row["started_unix_ns"] or 0
                        counts = left_out.setdefault(turn, [0, 0])
                        counts[0] += 1
                        counts[1] += bool(row["decoded"])
            for turn, (count, decoded) in left_out.items():
                if kept is not None and (number, turn[0]) in self._selected:
                    kept.leave_out(number, turn, count, decoded)
        return np.concatenate(masks)

    def _takes(self, number: int, record: RequestRecord) -> bool:
        place = number, record.request.request_id
        if self._selection is None or place in self._selected:
            return True
        return place not in self._refused and self._selection.takes(number, record)

    def _find_requests(self) -> tuple[dict[_Turn, tuple[int, int]], dict[tuple[int, str], _Turn]]:
        """The place of each turn's record, and the latest turn of each request."""
        found: dict[_Turn, tuple[int, int]] = {}
        latest: dict[tuple[int, str], _Turn] = {}
        for index, (number, part) in enumerate(self._request_parts):
            table = part.table(["request_id", "started_unix_ns"])
            turns = zip(*(column.to_pylist() for column in table.columns), strict=True)
            for row, (name, started_unix_ns) in enumerate(turns):
                turn = number, name, started_unix_ns
                found[turn] = index, row
                latest[number, name] = max(turn, latest.get((number, name), turn))
        return found, latest

    def _turn(self, number: int, request: Request) -> _Turn | None:
        """The turn that a row of ``request`` was taken in; the latest where that has no record."""
        turn = number, request.request_id, request.started_unix_ns
        return turn if turn in self._requests else self._latest.get(turn[:2])

    def pieces(self, piece_bytes: int, part_rows: int = 1) -> Iterator[list[Row]]:
        """Every row in order, as lists of about ``piece_bytes`` and whole parts of rows."""
        width = max((recording.d_model for recording in self._recordings), default=1)
        size = piece_bytes // (4 * width + ROW_OVERHEAD_BYTES)
        size = max(1, size // part_rows) * part_rows
        for start in range(0, len(self._order), size):
            yield self._load(self._order[start : start + size])

    def parts(self, part_rows: int) -> int:
        """How many parts of ``part_rows`` rows there are."""
        return -(-len(self._order) // part_rows)

    def part(self, number: int, part_rows: int) -> list[Row]:
        """The rows of one part, from 0."""
        return self._load(self._order[number * part_rows : (number + 1) * part_rows])

    def _load(self, rows: Any) -> list[Row]:
        loaded: dict[int, tuple[RecordedActivation, int]] = {}
        for part_index in np.unique(self._of_part[rows]):
            wanted = np.sort(rows[self._of_part[rows] == part_index])
            number, part = self._parts[int(part_index)]
            taken = part.take([int(row) for row in self._of_row[wanted]])
            loaded.update(
                {int(row): (record, number) for row, record in zip(wanted, taken, strict=True)}
            )
        ordered = [loaded[int(row)] for row in rows]
        turns = [self._turn(number, record.activation.request) for record, number in ordered]
        requests = self._load_requests({turn for turn in turns if turn is not None})
        return [
            Row(record, number, requests[turn] if turn is not None else None)
            for (record, number), turn in zip(ordered, turns, strict=True)
        ]

    def _load_requests(self, turns: set[_Turn]) -> dict[_Turn, RequestRecord]:
        by_part: dict[int, list[int]] = {}
        for turn in turns:
            part_index, row = self._requests[turn]
            by_part.setdefault(part_index, []).append(row)
        found: dict[_Turn, RequestRecord] = {}
        for part_index, rows in by_part.items():
            number, part = self._request_parts[part_index]
            for record in self._recordings[number].requests_of(part, sorted(rows)):
                found[_turn_of(number, record)] = record
        return found

    def requests(self) -> Iterator[tuple[int, RequestRecord]]:
        """Every request record that counts, one file in memory at a time, in recorded order."""
        for index, (number, part) in enumerate(self._request_parts):
            for row, record in enumerate(self._recordings[number].requests_of(part)):
                counts = self._requests[_turn_of(number, record)] == (index, row)
                if counts and self._takes(number, record):
                    yield number, record


def _turn_of(number: int, record: RequestRecord) -> _Turn:
    return number, record.request.request_id, record.request.started_unix_ns


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
