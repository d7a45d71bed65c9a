"""A queue bounded in bytes that refuses instead of waiting."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class ByteQueue(Generic[T]):
    """First in, first out. ``offer`` never waits; ``take`` waits for a first item only."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()

    def offer(self, item: T, size_bytes: int) -> bool:
        """Append, or return False where the queue is full. Size 0 is always taken."""
        with self._changed:
            if size_bytes and self._bytes + size_bytes > self._limit_bytes:
                return False
            self._items.append((item, size_bytes))
            self._bytes += size_bytes
            self._changed.notify()
            return True

    def take(self, limit: int, wait_s: float) -> list[T]:
        """Up to ``limit`` items; [] if none came within ``wait_s``."""
        deadline_s = time.monotonic() + wait_s
        with self._changed:
            while not self._items:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return []
                self._changed.wait(left_s)
            taken = [self._items.popleft() for _ in range(min(limit, len(self._items)))]
            self._bytes -= sum(size for _, size in taken)
            return [item for item, _ in taken]

    def __len__(self) -> int:
        return len(self._items)
