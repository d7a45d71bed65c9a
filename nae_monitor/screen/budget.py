"""What may be spent on decoding: a global rate, a cap per request, a share kept for chance."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum

from nae_monitor.settings import BudgetSettings

BURST_S = 4.0  # seconds of unspent rate a bucket can hold: one prompt arrives as one burst
REQUEST_LIMIT = 10_000  # requests whose spending is remembered; the oldest is forgotten first

Clock = Callable[[], float]


class Purchase(StrEnum):
    """What came of asking for one decode."""

    BOUGHT = "bought"
    LATER = "later"  # the rate is used up for now
    NEVER = "never"  # the request has had all that it may have


class TokenBucket:
    """Refills at ``rate_per_s`` up to ``capacity``; starts full. Not thread-safe."""

    def __init__(self, rate_per_s: float, capacity: float, clock: Clock) -> None:
        self._rate_per_s = rate_per_s
        self._capacity = capacity
        self._clock = clock
        self._level = capacity
        self._filled_s = clock()

    def take(self) -> bool:
        """Take one unit if there is one."""
        now_s = self._clock()
        gained = max(0.0, now_s - self._filled_s) * self._rate_per_s
        self._level = min(self._capacity, self._level + gained)
        self._filled_s = now_s
        if self._level < 1:
            return False
        self._level -= 1
        return True


def burst_bucket(rate_per_s: float, clock: Clock) -> TokenBucket | None:
    """A bucket that holds ``BURST_S`` of its rate; None for no rate."""
    if rate_per_s <= 0:
        return None
    return TokenBucket(rate_per_s, max(1.0, rate_per_s * BURST_S), clock)


class DecodeBudget:
    """Buys decodes. ``random_share`` of rate and cap can be spent on random rows alone.

    Over any stretch of t seconds at most ``decodes_per_s * (t + BURST_S)`` decodes (and one a
    bucket for tiny rates) are sold, and never more than ``per_request`` to one request.
    """

    def __init__(self, settings: BudgetSettings, random_share: float, clock: Clock) -> None:
        reserved = math.ceil(settings.per_request * random_share)
        self._caps = {True: reserved, False: settings.per_request - reserved}
        self._buckets = {
            True: burst_bucket(settings.decodes_per_s * random_share, clock),
            False: burst_bucket(settings.decodes_per_s * (1 - random_share), clock),
        }
        self._spent: OrderedDict[str, dict[bool, int]] = OrderedDict()

    def buy(self, request_id: str, *, random: bool) -> Purchase:
        """Spend one decode on a request, from the reserve if ``random``."""
        spent = self._spent.setdefault(request_id, {True: 0, False: 0})
        self._spent.move_to_end(request_id)
        while len(self._spent) > REQUEST_LIMIT:
            self._spent.popitem(last=False)
        bucket = self._buckets[random]
        if spent[random] >= self._caps[random] or bucket is None:
            return Purchase.NEVER
        if not bucket.take():
            return Purchase.LATER
        spent[random] += 1
        return Purchase.BOUGHT

    def left(self, request_id: str) -> int:
        """How many decodes beside the reserve a request may still have."""
        if self._buckets[False] is None:
            return 0
        spent = self._spent.get(request_id)
        return self._caps[False] - (spent[False] if spent is not None else 0)
