from __future__ import annotations

import os
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.records import Phase, Request, RowBatch, SampleReason
from nae_monitor.screen import SamplingScreen
from nae_monitor.screen.budget import BURST_S
from nae_monitor.settings import BudgetSettings, ScreenSettings
from nae_monitor.testing import ManualClock


def batch(rows: int, start: int = 0, request_id: str = "r") -> RowBatch:
    return RowBatch(
        requests=(Request(request_id, request_id, "m"),),
        request_index=(0,) * rows,
        positions=tuple(range(start, start + rows)),
        token_ids=(1,) * rows,
        phases=(Phase.PROMPT,) * rows,
        layer=2,
        vectors=torch.zeros(rows, 4),
    )


def screen(clock: ManualClock, **kwargs: object) -> SamplingScreen:
    budget = BudgetSettings(
        decodes_per_s=float(kwargs.pop("decodes_per_s", 1e6)),  # type: ignore[arg-type]
        per_request=int(kwargs.pop("per_request", 1_000_000)),  # type: ignore[call-overload]
    )
    return SamplingScreen(ScreenSettings(budget=budget, **kwargs), clock=clock)  # type: ignore[arg-type]


def test_every_nth_position_is_chosen_when_the_budget_is_ample() -> None:
    choices = screen(ManualClock(), every_n_tokens=8, random_share=0.0).choose(batch(40, start=3))
    assert [3 + c.row for c in choices] == [8, 16, 24, 32, 40]
    assert {c.reason for c in choices} == {SampleReason.EVERY_N}


def test_a_row_is_never_chosen_twice_and_rows_come_in_order() -> None:
    rows = [
        c.row for c in screen(ManualClock(), every_n_tokens=1, random_share=0.5).choose(batch(500))
    ]
    assert rows == sorted(set(rows))


def test_one_request_never_gets_more_than_its_cap() -> None:
    sampler = screen(ManualClock(), every_n_tokens=1, random_share=0.25, per_request=16)
    chosen = [c for start in range(0, 600, 20) for c in sampler.choose(batch(20, start))]
    assert len([c for c in chosen if c.reason is SampleReason.EVERY_N]) == 12
    assert len([c for c in chosen if c.reason is SampleReason.RANDOM]) <= 4


def test_another_request_has_a_cap_of_its_own() -> None:
    sampler = screen(ManualClock(), every_n_tokens=1, random_share=0.0, per_request=3)
    assert len(sampler.choose(batch(9, request_id="a"))) == 3
    assert len(sampler.choose(batch(9, request_id="b"))) == 3


def test_a_zero_cap_buys_nothing() -> None:
    assert screen(ManualClock(), every_n_tokens=1, per_request=0).choose(batch(50)) == []


@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0.1, 50),
    share=st.floats(0, 1),
    gaps_s=st.lists(st.floats(0, 5), min_size=1, max_size=30),
)
def test_the_rate_is_never_exceeded_whatever_the_arrivals(
    rate: float, share: float, gaps_s: list[float]
) -> None:
    clock = ManualClock()
    sampler = screen(clock, every_n_tokens=1, random_share=share, decodes_per_s=rate)
    bought = 0
    for i, gap_s in enumerate(gaps_s):
        clock.advance(gap_s)
        bought += len(sampler.choose(batch(30, request_id=str(i))))
    assert bought <= rate * (sum(gaps_s) + BURST_S) + 2


def test_the_random_reserve_falls_evenly_over_positions() -> None:
    sampler = screen(ManualClock(), every_n_tokens=4, random_share=0.4, decodes_per_s=1e9)
    counts = [0] * 20
    for i in range(4000):
        for choice in sampler.choose(batch(20, start=1, request_id=str(i))):
            if choice.reason is SampleReason.RANDOM:
                counts[choice.row] += 1
    expected = 4000 * 0.1
    # Seeded, so this is one fixed draw; 6 standard deviations would be a broken sampler.
    assert all(abs(c - expected) < 6 * (expected * 0.9) ** 0.5 for c in counts)


def test_a_prompt_larger_than_the_budget_is_sampled_over_its_whole_length() -> None:
    sampler = screen(ManualClock(), every_n_tokens=1, random_share=0.0, decodes_per_s=5)
    rows = [c.row for c in sampler.choose(batch(1000))]
    assert len(rows) == 20
    assert max(rows) > 500


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_not_stuck_on_a_lock_of_its_parent() -> None:
    sampler = screen(ManualClock(), every_n_tokens=1)
    with sampler._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if sampler.choose(batch(3)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_rows_of_many_requests_share_what_the_rate_allows() -> None:
    sampler = screen(ManualClock(), every_n_tokens=1, random_share=0.0, decodes_per_s=10)
    requests = tuple(Request(str(i), str(i), "m") for i in range(40))
    index = tuple(i for i in range(40) for _ in range(20))
    mixed = RowBatch(
        requests=requests,
        request_index=index,
        positions=tuple(range(20)) * 40,
        token_ids=(1,) * 800,
        phases=(Phase.PROMPT,) * 800,
        layer=2,
        vectors=torch.zeros(800, 4),
    )
    chosen = sampler.choose(mixed)
    assert len(chosen) == 40
    # By chance among all rows: not the first requests alone.
    assert len({index[choice.row] for choice in chosen}) > 20
