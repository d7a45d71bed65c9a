"""Rows that wait: the highest first, none for ever, never more than the budget."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.screen import DecodeBudget, Purchase, WaitingRows
from nae_monitor.screen.budget import BURST_S
from nae_monitor.settings import BudgetSettings
from nae_monitor.testing import ManualClock

ARRIVALS = st.lists(
    st.tuples(st.floats(0, 3), st.floats(-5, 30), st.integers(0, 3)), min_size=1, max_size=60
)


def pool(ageing_per_s: float = 1.0, wait_s: float = 1e9, limit: int = 10**6) -> WaitingRows[int]:
    return WaitingRows(ageing_per_s=ageing_per_s, wait_s=wait_s, limit=limit)


class Purse:
    """So many decodes and no more."""

    def __init__(self, decodes: int) -> None:
        self.decodes = decodes

    def buy(self, request_id: str) -> Purchase:
        self.decodes -= 1
        return Purchase.BOUGHT if self.decodes >= 0 else Purchase.LATER


@settings(max_examples=150, deadline=None)
@given(ARRIVALS, st.floats(0, 10), st.lists(st.integers(0, 4), min_size=60, max_size=60))
def test_what_is_bought_is_what_a_search_of_all_that_wait_would_choose(
    arrivals: list[tuple[float, float, int]], ageing_per_s: float, purses: list[int]
) -> None:
    waiting, rows, now_s = pool(ageing_per_s), {}, 0.0
    for number, (gap_s, score, _) in enumerate(arrivals):
        now_s += gap_s
        waiting.add(number, "r", score, now_s)
        rows[number] = score - ageing_per_s * now_s
        bought, _ = waiting.take(Purse(purses[number]).buy)
        expected = sorted(rows, key=lambda n: (-rows[n], n))[: purses[number]]
        assert bought == expected
        for one in bought:
            del rows[one]


@settings(max_examples=80, deadline=None)
@given(ARRIVALS, st.floats(0.2, 20), st.integers(0, 12), st.floats(0, 1), st.floats(0.1, 5))
def test_rate_and_cap_hold_whatever_waits(
    arrivals: list[tuple[float, float, int]],
    rate: float,
    per_request: int,
    share: float,
    wait_s: float,
) -> None:
    clock, bought_at = ManualClock(), list[tuple[float, str]]()
    budget = DecodeBudget(BudgetSettings(rate, per_request), share, clock)
    waiting: WaitingRows[str] = WaitingRows(ageing_per_s=1.0, wait_s=wait_s, limit=1000)
    for gap_s, score, owner in arrivals:
        clock.advance(gap_s)
        waiting.expire(clock())
        for copy in range(5):
            waiting.add(f"r{owner}", f"r{owner}", score + copy, clock())
        bought, _ = waiting.take(lambda name: budget.buy(name, random=False))
        bought_at += [(clock(), name) for name in bought]
    assert all(n <= per_request for n in Counter(name for _, name in bought_at).values())
    times = [at for at, _ in bought_at]
    for first in range(len(times)):  # over every stretch, not only the whole run
        for last in range(first, len(times)):
            stretch_s = times[last] - times[first]
            assert last - first + 1 <= rate * (1 - share) * (stretch_s + BURST_S) + 1 + 1e-6


@settings(max_examples=80, deadline=None)
@given(st.floats(0.1, 5), st.floats(0, 20), st.floats(0.1, 10))
def test_a_low_row_is_bought_however_many_higher_ones_keep_coming(
    ageing_per_s: float, ahead: float, step_s: float
) -> None:
    waiting = pool(ageing_per_s)
    waiting.add(-1, "low", 0.0, 0.0)
    latest_s = ahead / ageing_per_s
    for number in range(math.ceil(latest_s / step_s) + 2):
        now_s = number * step_s
        waiting.add(number, "high", ahead, now_s)
        bought, _ = waiting.take(Purse(1).buy)
        if bought == [-1]:
            return
        assert now_s <= latest_s + step_s
    raise AssertionError("it starved")


def test_a_row_that_waited_too_long_expires_and_is_told() -> None:
    waiting = pool(wait_s=2.0)
    waiting.add(1, "a", 5.0, 0.0)
    waiting.add(2, "a", 1.0, 1.5)
    assert waiting.expire(2.5) == [1]
    assert waiting.waits_for("a")
    assert waiting.expire(4.0) == [2]
    assert not waiting.waits_for("a")


def test_a_full_pool_lets_the_lowest_go() -> None:
    waiting = pool(limit=2)
    assert waiting.add(1, "a", 5.0, 0.0) == []
    assert waiting.add(2, "b", 3.0, 0.0) == []
    assert waiting.add(3, "c", 4.0, 0.0) == [2]
    assert waiting.add(4, "d", 1.0, 0.0) == [4]
    assert not waiting.waits_for("b")


def test_rows_of_a_request_that_has_had_its_share_do_not_hold_up_others() -> None:
    waiting = pool()
    for number in range(6):
        waiting.add(number, "greedy" if number < 5 else "other", 10.0 - number, 0.0)
    budget = DecodeBudget(BudgetSettings(100.0, 2), 0.0, ManualClock())
    bought, let_go = waiting.take(lambda name: budget.buy(name, random=False))
    assert (bought, let_go) == ([0, 1, 5], [2, 3, 4])


def test_a_row_without_a_finite_score_goes_first_and_ages_like_others() -> None:
    waiting = pool()
    waiting.add(1, "a", 30.0, 0.0)
    waiting.add(2, "a", math.inf, 5.0)
    waiting.add(3, "a", math.nan, 6.0)
    assert waiting.take(Purse(9).buy)[0] == [2, 3, 1]


def test_rows_of_one_request_can_be_let_go_alone() -> None:
    waiting = pool()
    for number, name in enumerate("abab"):
        waiting.add(number, name, 1.0, 0.0)
    assert sorted(waiting.let_go("a")) == [0, 2]
    assert len(waiting) == 2
    assert sorted(waiting.let_go()) == [1, 3]
