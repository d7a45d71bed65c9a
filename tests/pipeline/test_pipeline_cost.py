"""What the serving thread pays for a call; printed (``pytest -s``), never asserted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from pipeline_parts import LAYER, Bench

from nae_monitor.records import Phase, Request, RowBatch
from nae_monitor.screen import SamplingScreen
from nae_monitor.settings import BudgetSettings, CaptureSettings, ScreenSettings

WIDTH = 576
SHAPES = [("a prompt of 4096 tokens", 1, 4096), ("a step of 1", 1, 1), ("a step of 64", 64, 1)]


def batch_of(requests: int, rows_each: int, position: int) -> RowBatch:
    index = tuple(r for r in range(requests) for _ in range(rows_each))
    return RowBatch(
        requests=tuple(Request(f"r{r}", f"r{r}", "m") for r in range(requests)),
        request_index=index,
        positions=tuple(position + i for _ in range(requests) for i in range(rows_each)),
        token_ids=tuple(range(len(index))),
        phases=(Phase.PROMPT,) * len(index),
        layer=LAYER,
        vectors=torch.ones(len(index), WIDTH),
    )


def median_us(call: Callable[[int], None], rounds: int) -> float:
    times = []
    for number in range(rounds):
        started_s = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - started_s)
    return statistics.median(times) * 1e6


@pytest.mark.parametrize(("what", "requests", "rows_each"), SHAPES)
@pytest.mark.parametrize("bought", ["nothing is bought", "all that is asked for is bought"])
def test_the_cost_of_rows_is_printed(
    bench: Callable[..., Bench], what: str, requests: int, rows_each: int, bought: str
) -> None:
    per_request = 0 if bought == "nothing is bought" else 10**9
    budget = BudgetSettings(decodes_per_s=1e9, per_request=per_request)
    here = bench(
        screen=SamplingScreen(ScreenSettings(budget=budget)),
        capture=CaptureSettings(queue_bytes=10**9),
    )
    here.decoder.released.clear()  # the background thread must not take part
    for r in range(requests):
        here.start(f"r{r}")
    batches = [batch_of(requests, rows_each, 100 + n) for n in range(40)]
    cost_us = median_us(lambda n: here.listener.rows(batches[n]), len(batches))
    print(f"\nrows(), {what}, {bought}: {cost_us:.0f} us", end="")
    here.health.counters()
    here.pipeline.close(0.0)
    assert here.counter("tokens.screened") == sum(len(batch) for batch in batches)
