"""A queue bounded in bytes that refuses instead of waiting."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
REFILL_S = 0.05  # between two looks at what becomes due later


class ByteQueue(Generic[T]):
    """First in, first out, for any number of offering threads and one that takes.

    ``offer`` never waits for room. Only :meth:`wait` waits, for a first item.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._refill: Callable[[], bool] = lambda: False
        self.renew()

    def refill_by(self, refill: Callable[[], bool]) -> None:
        """Ask ``refill`` to offer what is due before each wait; it says whether more will be."""
        self._refill = refill

    def renew(self) -> None:
        """Start empty and open, with a lock of its own: for a forked child."""
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._closed = False
        self._woken = False
        self._changed = threading.Condition()

    def offer(self, item: T, size_bytes: int) -> bool:
        """Append, or return False where the queue is full or closed. Size 0 always has room."""
        with self._changed:
            if self._closed or (size_bytes and self._bytes + size_bytes > self._limit_bytes):
                return False
            self._items.append((item, size_bytes))
            self._bytes += size_bytes
            self._changed.notify()
            return True

    def wait(self, timeout_s: float) -> None:
        """Return when there is an item, :meth:`wake` was called, or the time is over."""
        if self._refill():
            timeout_s = min(timeout_s, REFILL_S)
        with self._changed:
            if not self._items and not self._woken:
                self._changed.wait(timeout_s)
            self._woken = False

    def is_spent(self) -> bool:
        """Whether there is nothing, not even what is due and not offered yet."""
        self._refill()
        return not self._items

    def wake(self) -> None:
        """End the wait that is under way, or the next one."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def take(self, limit: int) -> list[T]:
        """Up to ``limit`` items, at once; their bytes are free again."""
        with self._changed:
            taken = [self._items.popleft() for _ in range(min(limit, len(self._items)))]
            self._bytes -= sum(size for _, size in taken)
            return [item for item, _ in taken]

    def close(self) -> list[T]:
        """Refuse everything from now on; returns what was left."""
        with self._changed:
            self._closed = True
        return self.take(len(self._items))

    @property
    def filled_share(self) -> float:
        """How much of the room is taken, 0 to 1; a glance."""
        return self._bytes / self._limit_bytes

    def __len__(self) -> int:
        return len(self._items)
