"""Which turns of a topic are not worked off, and where on it each of them began."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import count

from kafka import TopicPartition

from nae_monitor.placement.reception import Guest


@dataclass(slots=True)
class OpenTurn:
    """A turn that is not worked off, and where it began."""

    guest: Guest
    name: int  # its number at its serving process
    number: int  # ours
    partition: TopicPartition
    offset: int
    heard_s: float
    sequence: int = 0  # of the frame that is next


class OpenTurns:
    """Thread-safe. Gives numbers of its own, which never come again.

    A turn that is read again is another one, so that the late end of the first cannot be taken for
    its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = count()
        self._open: dict[int, OpenTurn] = {}
        self._latest: dict[tuple[str, int], int] = {}  # by process and its number

    def begin(
        self, guest: Guest, name: int, partition: TopicPartition, offset: int, now_s: float
    ) -> int:
        """A turn begins, maybe again; its number."""
        with self._lock:
            number = next(self._numbers)
            self._open[number] = OpenTurn(guest, name, number, partition, offset, now_s)
            self._latest[guest.process, name] = number
            return number

    def number(self, guest: Guest, name: int) -> int:
        """Of an open turn; a fresh one for a turn that is not."""
        with self._lock:
            found = self._latest.get((guest.process, name))
            return next(self._numbers) if found is None else found

    def hear(self, number: int, sequence: int, now_s: float) -> bool:
        """A frame of a turn came; False where those before it are missing."""
        with self._lock:
            turn = self._open.get(number)
            if turn is None:
                return True
            expected, turn.sequence = turn.sequence, sequence + 1
            turn.heard_s = now_s
            return sequence == expected

    def close(self, number: int) -> None:
        """Nothing waits for a turn any more."""
        with self._lock:
            turn = self._open.pop(number, None)
            if turn is not None:
                name = turn.guest.process, turn.name
                if self._latest.get(name) == number:
                    del self._latest[name]

    def unheard_since(self, since_s: float) -> list[OpenTurn]:
        """Turns of which nothing came since."""
        return self._those(lambda turn: turn.heard_s < since_s)

    def of(self, partitions: Collection[TopicPartition]) -> list[OpenTurn]:
        """Turns that began on some partitions."""
        return self._those(lambda turn: turn.partition in partitions)

    def first_offsets(self) -> dict[TopicPartition, int]:
        """Of each partition with open turns, where the first of them began."""
        with self._lock:
            first: dict[TopicPartition, int] = {}
            for turn in self._open.values():
                first[turn.partition] = min(turn.offset, first.get(turn.partition, turn.offset))
            return first

    def _those(self, chosen: Callable[[OpenTurn], bool]) -> list[OpenTurn]:
        with self._lock:
            return [turn for turn in self._open.values() if chosen(turn)]
