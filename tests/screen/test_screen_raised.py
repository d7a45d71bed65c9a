"""Sampling that a rule's hit raised, and what it leaves alone."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.records import Phase, Request, RowBatch, SampleReason
from nae_monitor.screen import RaisableScreen, SamplingScreen
from nae_monitor.screen.raised import MAX_RAISED, RaisedSampling
from nae_monitor.settings import BudgetSettings, ScreenSettings
from nae_monitor.testing import ManualClock

SETTINGS = ScreenSettings(
    every_n_tokens=10, random_share=0.2, budget=BudgetSettings(decodes_per_s=1e6, per_request=3)
)
REQUESTS = (
    Request("a", "a", "m", "s1", "t1"),
    Request("b", "b", "m", "s1"),
    Request("c", "c", "m"),
)


def batch(owners: list[int], first: int = 0) -> RowBatch:
    count = len(owners)
    return RowBatch(
        requests=REQUESTS,
        request_index=tuple(owners),
        positions=tuple(range(first, first + count)),
        token_ids=(1,) * count,
        phases=(Phase.PROMPT,) * count,
        layer=1,
        vectors=torch.zeros(count, 2),
    )


def screen(raised_decodes_per_s: float = 1e6) -> SamplingScreen:
    clock = ManualClock()
    return SamplingScreen(SETTINGS, clock=clock, raised_decodes_per_s=raised_decodes_per_s)


def test_without_a_budget_of_its_own_nothing_is_raised() -> None:
    plain = screen(0.0)
    assert isinstance(plain, RaisableScreen)
    assert not plain.raise_sampling("request", "a", 1.0, 100)
    assert all(c.reason is not SampleReason.RAISED for c in plain.choose(batch([0] * 50)))


def test_raised_rows_come_on_top_of_those_that_would_be_chosen_anyway() -> None:
    plain, raised = screen(), screen()
    assert raised.raise_sampling("request", "a", 1.0, 30)
    expected = plain.choose(batch([0] * 50))
    found = raised.choose(batch([0] * 50))
    ordinary = [choice for choice in found if choice.reason is not SampleReason.RAISED]
    assert ordinary == expected
    assert {choice.row for choice in found} == {*range(30)} | {c.row for c in expected}


def test_the_raised_budget_bounds_what_a_rule_can_cost() -> None:
    raised = screen(raised_decodes_per_s=2.0)
    raised.raise_sampling("request", "a", 1.0, 10_000)
    chosen = raised.choose(batch([0] * 1000))
    assert sum(c.reason is SampleReason.RAISED for c in chosen) == 8  # four seconds' worth


@given(
    st.lists(st.integers(0, 2), max_size=60),
    st.lists(
        st.tuples(
            st.sampled_from([("request", "a"), ("session", "s1"), ("tenant", "t1")]),
            st.floats(0.01, 1.0),
            st.integers(1, 20),
        ),
        max_size=6,
    ),
)
@settings(max_examples=60, deadline=None)
def test_a_row_gets_the_largest_rate_of_its_scopes_for_so_many_tokens(
    owners: list[int], wishes: list[tuple[tuple[str, str], float, int]]
) -> None:
    raised, expected = RaisedSampling(), [0.0] * len(owners)
    open_wishes: dict[tuple[str, str], tuple[float, int]] = {}
    for (scope, value), rate, tokens in wishes:
        raised.add(scope, value, rate, tokens)  # type: ignore[arg-type]
        old = open_wishes.get((scope, value), (0.0, 0))
        open_wishes[scope, value] = (max(rate, old[0]), max(tokens, old[1]))
    found = raised.rates(batch(owners))
    # Sequence by sequence, as the wishes of a session are used up in that order.
    for owner in sorted(set(owners)):
        request = REQUESTS[owner]
        mine = [row for row, one in enumerate(owners) if one == owner]
        for scope, value in (
            ("request", request.request_id), ("session", request.session_id),
            ("tenant", request.tenant),
        ):  # fmt: skip
            rate, left = open_wishes.get((scope, value or ""), (0.0, 0))
            for row in mine[:left]:
                expected[row] = max(expected[row], rate)
            open_wishes[scope, value or ""] = (rate, max(0, left - len(mine)))
    assert ([0.0] * len(owners) if found is None else found.tolist()) == expected


def test_wishes_that_nobody_uses_are_bounded() -> None:
    raised = RaisedSampling()
    for number in range(MAX_RAISED + 5):
        raised.add("request", f"r{number}", 1.0, 1)
    assert len(raised._wishes) == MAX_RAISED
