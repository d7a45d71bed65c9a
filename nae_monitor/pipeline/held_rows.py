"""Rows that wait in memory for a rule to ask for their recording."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from nae_monitor.records import Activation, Decoding

MAX_BYTES = 64 * 1024 * 1024  # of vectors, over all requests
ROW_OVERHEAD_BYTES = 2048  # Python objects and texts beside the vector, roughly


@dataclass(frozen=True, eq=False, slots=True)
class HeldRow:
    """What the recording takes of one row."""

    activation: Activation
    decoding: Decoding | None
    reason: str | None  # why it has no decoding

    @property
    def size_bytes(self) -> int:
        """Memory that holding it takes, roughly."""
        vector = self.activation.vector
        return int(vector.numel() * vector.element_size()) + ROW_OVERHEAD_BYTES


@dataclass(slots=True)
class _Request:
    rows: list[HeldRow] = field(default_factory=list)
    captured: bool = False


class HeldRows:
    """Rows of requests under way, bounded; the request that began first lets go first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._requests: OrderedDict[str, _Request] = OrderedDict()

    def is_captured(self, request_id: str) -> bool:
        """Whether a rule asked for the request's rows."""
        known = self._requests.get(request_id)
        return known is not None and known.captured

    def hold(self, row: HeldRow) -> int:
        """Hold a row; returns how many older ones had to be let go for it."""
        request_id = row.activation.request.request_id
        self._requests.setdefault(request_id, _Request()).rows.append(row)
        self._bytes += row.size_bytes
        let_go = 0
        for request in self._requests.values():
            if self._bytes <= self._max_bytes:
                break
            let_go += len(self._take(request))
        return let_go

    def capture(self, request_id: str) -> list[HeldRow]:
        """The rows held so far; later ones are to be written at once."""
        request = self._requests.setdefault(request_id, _Request())
        request.captured = True
        return self._take(request)

    def forget(self, request_id: str) -> None:
        """The request ended."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._take(request)

    def _take(self, request: _Request) -> list[HeldRow]:
        rows, request.rows = request.rows, []
        self._bytes -= sum(row.size_bytes for row in rows)
        return rows
