from __future__ import annotations

import numpy as np
import pytest
import torch
from overhead import claims_of, step_claim
from serving_cost.profile import TOTAL
from serving_cost.rounds import Pair, Timed
from serving_cost.variants import HOOK, IPC, NNSIGHT, patches


def timed(whole: float, first: float = 0.1, gap: float = 0.02) -> Timed:
    return Timed(whole, first, np.full(9, gap))


def pairs(whole: float, **changes: float) -> list[Pair]:
    """Generations of 1 s without a monitor, beside some of ``whole`` seconds."""
    return [Pair(timed(1.0), timed(whole, **changes)) for _ in range(7)]


def held(name: str, found: list[Pair]) -> dict[str, bool | None]:
    return {claim.name.partition(": ")[2]: claim.holds for claim in claims_of(name, 1, found)}


def test_a_hundredth_of_the_rate_is_what_a_monitor_may_cost() -> None:
    assert held(IPC, pairs(1.0, gap=0.0201))["tokens/s"] is True
    assert held(IPC, pairs(1.0, gap=0.0204))["tokens/s"] is False


def test_work_done_every_eighth_token_counts_and_a_hiccup_of_the_machine_does_not() -> None:
    base = Timed(1.0, 0.1, np.full(64, 0.02))
    every, once = np.full(64, 0.02), np.full(64, 0.02)
    every[7::8] += 0.008
    once[5] += 1.0
    for gaps, value in ((every, 0.16 / 0.168), (once, 1.0)):
        found = claims_of(IPC, 1, [Pair(base, Timed(1.0, 0.1, gaps))] * 3)
        claims = {claim.name: claim for claim in found}
        assert claims[f"{IPC}, batch 1: tokens/s"].value == pytest.approx(value)


def test_whole_generations_are_reported_beside_the_median_window() -> None:
    (whole, *_) = claims_of(IPC, 1, pairs(1.25))
    assert whole.name.endswith("tokens/s, whole generations")
    assert (whole.value, whole.bound) == (0.8, None)


def test_an_interval_that_reaches_low_breaks_a_claim_of_its_own() -> None:
    mixed = pairs(1.0)[:4] + pairs(1.0, gap=0.021)[:3]
    found = held(IPC, mixed)
    assert found["tokens/s"] is True
    assert found["tokens/s, low end"] is False


def test_a_late_first_token_and_slow_gaps_break_claims() -> None:
    assert held(IPC, pairs(1.0))["time to first token"] is True
    assert held(IPC, pairs(1.0, first=0.11))["time to first token"] is False
    assert held(IPC, pairs(1.0, gap=0.021))["p99 between tokens"] is False


def test_one_slow_gap_in_a_hundred_is_what_the_percentile_shows() -> None:
    slow = Timed(1.0, 0.1, np.array([0.02] * 90 + [0.1] * 10))
    base = Timed(1.0, 0.1, np.full(100, 0.02))
    claims = {claim.name: claim for claim in claims_of(IPC, 1, [Pair(base, slow)] * 3)}
    assert claims[f"{IPC}, batch 1: p99 between tokens"].value == pytest.approx(5.0)


def test_peers_are_reported_and_not_held_to_anything() -> None:
    assert set(held(HOOK, pairs(2.0)).values()) == {None}


def test_a_peer_that_does_not_stream_has_a_rate_alone() -> None:
    silent = Timed(2.0, float("nan"), np.empty(0))
    assert list(held(NNSIGHT, [Pair(timed(1.0), silent)] * 3)) == ["tokens/s, whole generations"]


def test_microseconds_are_held_to_half_a_hundredth_of_a_step_at_one_sequence() -> None:
    assert step_claim(1, {TOTAL: 190.0}).holds is True
    assert step_claim(1, {TOTAL: 210.0}).holds is False


def test_every_hook_and_replaced_method_is_found() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert list(patches(model)) == []
    model[0].register_forward_hook(lambda *_: None)
    model.register_forward_pre_hook(lambda *_: None)
    model.forward = model.forward  # type: ignore[method-assign]
    assert len(patches(model)) == 3
