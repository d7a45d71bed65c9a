"""Batches whose scores are on their way from the device, and ends of turns behind them."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from nae_monitor.host_copy import HostCopy
from nae_monitor.pipeline.turn import Ended, Turn
from nae_monitor.records import RowBatch


@dataclass(frozen=True, eq=False, slots=True)
class Scoring:
    """A batch that a screen has begun to score."""

    batch: RowBatch
    turns: dict[int, Turn | None]  # by index of the batch's requests
    amounts: dict[str, int]  # rows of each request
    begun: HostCopy | None  # None: the screen begins when it is asked to choose


class Landing:
    """First in, first out, for any number of threads; what is put in stays in order.

    Args:
        land: takes what has come; called by one thread at a time, and must not raise.
        copying: guards looks at the device.
    """

    def __init__(
        self,
        land: Callable[[Scoring | Ended], None],
        copying: Callable[[Callable[[], object]], object | None],
    ) -> None:
        self._land = land
        self._copying = copying
        self.renew()

    def renew(self) -> None:
        """Hold nothing, with a lock of its own: for a forked child."""
        self._items: deque[Scoring | Ended] = deque()
        self._lock = threading.Lock()

    def is_clear_for(self, item: Scoring | Ended) -> bool:
        """Whether nothing must be waited for before ``item``, itself included."""
        return not self and self._has_come(self._begun(item))

    def __bool__(self) -> bool:
        """Whether anything is on its way or being taken."""
        # In this order: what has left the row is being taken, or was.
        return bool(self._items) or self._lock.locked()

    def put(self, item: Scoring | Ended) -> None:
        """Put in, behind all else; :meth:`settle` must follow."""
        self._items.append(item)

    def settle(self, *, wait: bool = False) -> None:
        """Hand on what has come, or with ``wait`` everything.

        Without ``wait`` it never blocks: what another thread is at is left to that thread.
        """
        while self._is_due(wait):
            if not self._lock.acquire(blocking=wait):
                return
            try:
                while self._is_due(wait):
                    self._take_first(wait)
            finally:
                self._lock.release()
            # Once more: another thread may have put something in and found the lock taken.

    def abandon(self) -> list[Scoring | Ended]:
        """Everything that is still on its way; nobody will wait for it."""
        left: list[Scoring | Ended] = []
        with contextlib.suppress(IndexError):
            while True:
                left.append(self._items.popleft())
        return left

    def _take_first(self, wait: bool) -> None:
        try:
            begun = self._begun(self._items[0])
            if wait and begun is not None:  # while it is in the row still: this may hang for good
                self._copying(begun.wait)
            item = self._items.popleft()
        except IndexError:  # abandoned meanwhile
            return
        self._land(item)

    def _is_due(self, wait: bool) -> bool:
        try:
            begun = self._begun(self._items[0])
        except IndexError:
            return False
        return wait or self._has_come(begun)

    def _has_come(self, begun: HostCopy | None) -> bool:
        if begun is None or begun.arrived is None:
            return True
        # One that cannot be asked has come: what is wrong with it shows when it is read.
        return self._copying(begun.done) is not False

    @staticmethod
    def _begun(item: Scoring | Ended) -> HostCopy | None:
        return item.begun if isinstance(item, Scoring) else None
