"""The newest rows of an outbox in memory, so that sending what was just committed reads nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from itertools import islice

from nae_monitor.alert.outbox_rows import Row

MOST_BYTES = 8 * 1024 * 1024


class FreshRows:
    """All rows of the file beyond one of them, or nothing: it never knows a part of them."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._rows: deque[Row] = deque()
        self._size_bytes = 0
        self._floor: int | None = None  # every row beyond it is here; None: nothing is known

    def forget(self) -> None:
        """The file may hold others now."""
        self._rows.clear()
        self._size_bytes = 0
        self._floor = None

    def committed(self, rows: Sequence[Row], gone: Collection[int]) -> None:
        """These rows are the newest of the file now, and those ids are not in it any more."""
        if rows and self._floor is None:
            self._floor = rows[0].row_id - 1
        self._rows.extend(rows)
        if gone:
            self._rows = deque(row for row in self._rows if row.row_id not in gone)
        self._size_bytes = sum(row.size_bytes for row in self._rows)
        while self._size_bytes > self._most_bytes:
            self._let_go_of_first()

    def after(self, row_id: int, limit: int) -> list[Row] | None:
        """The oldest beyond ``row_id``; None where the file has to be asked."""
        if self._floor is None or row_id < self._floor:
            return None
        while self._rows and self._rows[0].row_id <= row_id:
            self._let_go_of_first()
        return list(islice(self._rows, limit))

    def _let_go_of_first(self) -> None:
        row = self._rows.popleft()
        self._size_bytes -= row.size_bytes
        self._floor = row.row_id
