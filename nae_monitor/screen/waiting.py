"""Rows that stand out and wait for the budget: the highest first, and waiting counts too."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from nae_monitor.screen.budget import Purchase

T = TypeVar("T")
MAX_PRIORITY = 1e6  # of rows without a finite score, and of what follows a hit


@dataclass(frozen=True, order=True, slots=True)
class _Place(Generic[T]):
    """Sorts by what a row is worth at any one time; of two alike the later sorts first."""

    # All rows gain at the same rate, so that their order never changes: it is that of the score
    # less the rate times the time of arrival.
    worth: float
    number: int  # counts down
    item: T = field(compare=False)
    request_id: str = field(compare=False)
    since_s: float = field(compare=False)


class WaitingRows(Generic[T]):
    """A bounded pool ordered by ``score + ageing_per_s * seconds waited``. Not thread-safe.

    A row is passed only by rows that score higher and arrive less than
    ``(their score - its score) / ageing_per_s`` seconds after it, so none is passed for ever.

    Args:
        ageing_per_s: score that a second of waiting is worth; 0: waiting counts for nothing.
        wait_s: a row that waited longer expires.
        limit: rows; above it the lowest is let go.
    """

    def __init__(self, *, ageing_per_s: float, wait_s: float, limit: int) -> None:
        self._ageing_per_s = ageing_per_s
        self._wait_s = wait_s
        self._limit = limit
        self._places: list[_Place[T]] = []  # ascending
        self._of_request: Counter[str] = Counter()
        self._added = 0

    def __len__(self) -> int:
        return len(self._places)

    def waits_for(self, request_id: str) -> bool:
        """Whether a row of the request waits."""
        return request_id in self._of_request

    def add(self, item: T, request_id: str, score: float, now_s: float) -> list[T]:
        """Let a row wait; returns what had to be let go for it, which may be itself."""
        bounded = MAX_PRIORITY if math.isnan(score) else min(score, MAX_PRIORITY)
        self._added += 1
        place = _Place(bounded - self._ageing_per_s * now_s, -self._added, item, request_id, now_s)
        bisect.insort(self._places, place)
        self._of_request[request_id] += 1
        return [self._pop(0).item for _ in range(len(self._places) - self._limit)]

    def take(self, buy: Callable[[str], Purchase]) -> tuple[list[T], list[T]]:
        """Buy from the top while there is a budget.

        Args:
            buy: asks the budget for one decode of a request.

        Returns:
            The rows bought, in that order, and those whose requests may have no more.
        """
        bought: list[T] = []
        let_go: list[T] = []
        while self._places:
            answer = buy(self._places[-1].request_id)
            if answer is Purchase.LATER:
                break
            place = self._pop(-1)
            (bought if answer is Purchase.BOUGHT else let_go).append(place.item)
        return bought, let_go

    def expire(self, now_s: float) -> list[T]:
        """Let go what waited longer than it may."""
        return self._leave(lambda place: now_s - place.since_s > self._wait_s)

    def let_go(self, request_id: str | None = None) -> list[T]:
        """Let go the rows of a request, or all."""
        return self._leave(lambda place: request_id in (None, place.request_id))

    def _leave(self, goes: Callable[[_Place[T]], bool]) -> list[T]:
        going = [place for place in self._places if goes(place)]
        if going:
            self._places = [place for place in self._places if not goes(place)]
            for place in going:
                self._forget(place.request_id)
        return [place.item for place in going]

    def _pop(self, index: int) -> _Place[T]:
        place = self._places.pop(index)
        self._forget(place.request_id)
        return place

    def _forget(self, request_id: str) -> None:
        self._of_request[request_id] -= 1
        if not self._of_request[request_id]:
            del self._of_request[request_id]
