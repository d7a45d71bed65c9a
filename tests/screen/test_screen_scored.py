"""Choice by score: who stands out gets the decodes, and chance keeps its share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.records import Phase, Request, RowBatch, SampleReason
from nae_monitor.screen import Directions, Purchase, ScoredScreen
from nae_monitor.screen.directions import calibrated
from nae_monitor.settings import BudgetSettings, ScreenSettings
from nae_monitor.testing import ManualClock

D = 8


def directions() -> Directions:
    """Along the first two axes."""
    random = torch.Generator().manual_seed(3)
    return calibrated(
        ("first", "second"), torch.eye(D)[:2], torch.randn(20_000, D, generator=random),
        torch.arange(20_000) % 2 == 0, base_model="m", layer=2, provenance={},
    )  # fmt: skip


DIRECTIONS = directions()


def screen(**changes: Any) -> ScoredScreen:
    budget = BudgetSettings(
        decodes_per_s=changes.pop("decodes_per_s", 1e6),
        per_request=changes.pop("per_request", 1_000_000),
    )
    found = ScreenSettings(budget=budget, **{"decode_share": 0.01, "random_share": 0.0, **changes})
    return ScoredScreen(found, DIRECTIONS, clock=ManualClock())


def batch(vectors: torch.Tensor, phase: Phase = Phase.COMPLETION, start: int = 0) -> RowBatch:
    count = len(vectors)
    return RowBatch(
        requests=(Request("r", "r", "m"),),
        request_index=(0,) * count,
        positions=tuple(range(start, start + count)),
        token_ids=(1,) * count,
        phases=(phase,) * count,
        layer=2,
        vectors=vectors,
    )


def rows(*strengths: float) -> torch.Tensor:
    """Rows of a fixed rest that lie along the first axis as told."""
    found = torch.full((len(strengths), D), 0.3)
    found[:, 0] = torch.tensor(strengths)
    return found


@pytest.mark.parametrize("phase", list(Phase))
def test_rows_that_stand_out_are_bought_and_ordinary_ones_are_not(phase: Phase) -> None:
    choices = screen().choose(batch(rows(0, 9, 0.1, 20), phase))
    assert [c.row for c in choices] == [1, 3]
    assert {c.reason for c in choices} == {SampleReason.SCORE}


def test_the_highest_scores_come_first_where_the_budget_is_short() -> None:
    choices = screen(per_request=2).choose(batch(rows(4, 30, 5, 9, 3)))
    assert [c.row for c in choices] == [1, 3]


def test_a_choice_carries_the_scores_it_was_made_by() -> None:
    found = screen()
    (choice,) = found.choose(batch(rows(20)))
    expected = found.scores(batch(rows(20)))[0]
    assert choice.scores == pytest.approx({"first": expected[0], "second": expected[1]}, abs=1e-3)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_row_that_cannot_be_scored_comes_first(broken: float) -> None:
    vectors = rows(20, 1, 30)
    vectors[1, 4] = broken
    (choice,) = screen(per_request=1).choose(batch(vectors))
    assert (choice.row, dict(choice.scores)) == (1, {})


def test_a_batch_without_rows_gives_none() -> None:
    assert screen().choose(batch(torch.empty(0, D))) == []


def test_rows_are_bought_by_chance_whatever_they_score() -> None:
    found = screen(decode_share=0.4, random_share=0.5, per_request=10**9)
    random = torch.Generator().manual_seed(1)
    hits = {True: 0, False: 0}
    total = {True: 0, False: 0}
    for start in range(0, 40_000, 500):
        vectors = torch.randn(500, D, generator=random)
        high = found.scores(batch(vectors)).max(axis=1) > 1
        chosen = {c.row for c in found.choose(batch(vectors, start=start))
                  if c.reason is SampleReason.RANDOM}  # fmt: skip
        for row, is_high in enumerate(high.tolist()):
            total[is_high] += 1
            hits[is_high] += row in chosen
    rates = {key: hits[key] / total[key] for key in hits}
    assert rates[True] == pytest.approx(rates[False], abs=0.02)
    assert rates[True] == pytest.approx(0.5 * 0.4, abs=0.02)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.floats(-30, 30), max_size=12), max_size=12),
    st.integers(0, 9),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_a_request_never_gets_more_than_its_cap_and_no_row_twice(
    batches: list[list[float]], per_request: int, random_share: float
) -> None:
    found = screen(per_request=per_request, random_share=random_share, decode_share=0.4)
    bought: list[int] = []
    for number, strengths in enumerate(batches):
        choices = found.choose(batch(rows(*strengths), start=100 * number))
        bought += [100 * number + c.row for c in choices]
    assert len(bought) == len(set(bought)) <= per_request


@pytest.mark.parametrize("read", [(), (0, 1, 2, 3, 4), (1, 3)])
def test_the_scores_are_those_of_the_directions(read: tuple[int, ...]) -> None:
    vectors = torch.randn(5, D, generator=torch.Generator().manual_seed(2))
    prompt = torch.tensor([row in read for row in range(5)])
    phases = tuple(Phase.PROMPT if row in read else Phase.COMPLETION for row in range(5))
    found = screen().scores(replace(batch(vectors), phases=phases))
    assert found == pytest.approx(DIRECTIONS.scores(vectors, prompt).numpy(), abs=1e-5)


def test_rows_that_stand_out_are_offered_unpaid_and_the_random_share_is_bought() -> None:
    found = screen(random_share=0.5, decode_share=0.4)
    vectors = torch.randn(400, D, generator=torch.Generator().manual_seed(5))
    offers = found.offers(batch(vectors))
    assert {c.reason for c in offers.bought} == {SampleReason.RANDOM}
    scores = [score for _, score in offers.waiting]
    assert scores == sorted(scores, reverse=True)
    largest = found.scores(batch(vectors)).max(axis=1)
    bought = {c.row for c in offers.bought}
    limit = DIRECTIONS.threshold(Phase.COMPLETION, 0.4)
    over = {row for row, score in enumerate(largest) if score >= limit}
    assert {c.row for c, _ in offers.waiting} == over - bought


def test_no_more_rows_are_offered_than_their_request_may_have() -> None:
    found = screen(per_request=3)
    offers = found.offers(batch(rows(4, 30, 5, 9, 3)))
    assert [c.row for c, _ in offers.waiting] == [1, 3, 2]
    assert [found.buy("r") for _ in range(4)] == [*[Purchase.BOUGHT] * 3, Purchase.NEVER]
    assert found.offers(batch(rows(50))).waiting == []


def test_the_reserve_is_the_draw_of_a_naive_sampler_whatever_rows_score() -> None:
    """The same generator, a coin a row and nothing else: exact, row by row."""
    found = screen(decode_share=0.3, random_share=0.5, per_request=10**9)
    coins, random = np.random.default_rng(0), torch.Generator().manual_seed(7)
    for start in range(0, 6_000, 300):
        vectors = torch.randn(300, D, generator=random) * (1 + start / 1000)
        offers = found.offers(batch(vectors, start=start))
        heads = np.flatnonzero(coins.random(300) < 0.5 * 0.3)
        assert [c.row for c in offers.bought] == heads.tolist()
        coins.shuffle(heads)  # as the screen does to buy in no order


def test_the_reserve_falls_on_every_tenth_of_the_scores_alike_when_it_is_short() -> None:
    """Chi-square over tenths of the score, with a reserve that cannot pay all its rows."""
    clock = ManualClock()
    budget = BudgetSettings(decodes_per_s=40.0, per_request=10**9)
    wanted = ScreenSettings(budget=budget, decode_share=0.4, random_share=0.5)
    found = ScoredScreen(wanted, DIRECTIONS, clock=clock)
    random = torch.Generator().manual_seed(11)
    every, chosen = [], []
    for start in range(0, 100_000, 500):
        clock.advance(1.0)
        vectors = torch.randn(500, D, generator=random)
        largest = found.scores(batch(vectors)).max(axis=1)
        every.append(largest)
        offers = found.offers(batch(vectors, start=start))
        chosen.append(largest[[c.row for c in offers.bought]])
    edges = np.quantile(np.concatenate(every), np.linspace(0, 1, 11))[1:-1]
    counts = np.bincount(np.searchsorted(edges, np.concatenate(chosen)), minlength=10)
    assert counts.sum() < 0.25 * 100_000  # it was short
    statistic = float(np.sum((counts - counts.mean()) ** 2) / counts.mean())
    assert statistic < 27.88  # what chance passes once in 1,000 with 9 degrees; one fixed draw
