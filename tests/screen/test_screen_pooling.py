"""Pooled scores against sums and maxima taken one row at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nae_monitor.records import Phase, Request, RowBatch
from nae_monitor.screen import Pool, ScoredScreen, read_directions, write_directions
from nae_monitor.screen import pooling as module
from nae_monitor.screen.directions import SHARES, calibrated
from nae_monitor.screen.pooling import ScorePool
from nae_monitor.settings import BudgetSettings, ScreenSettings
from nae_monitor.testing import ManualClock

M = 3
POOLS = st.builds(Pool, st.sampled_from(["ema", "max"]), st.integers(2, 12))


def naive(pool: Pool, rows: list[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    """One row at a time, as the docstring of the pool says it."""
    found, average, last = [], np.zeros(M), list[NDArray[np.float32]]()
    for row in rows:
        finite = bool(np.isfinite(row).all())
        average = average + ((row if finite else 0.0) - average) * 2 / (pool.tokens + 1)
        last = [*last, row if finite else np.full(M, -np.inf, np.float32)][-pool.tokens :]
        value = average if pool.kind == "ema" else np.max(last, axis=0)
        found.append(value.astype(np.float64) if finite else np.full(M, np.nan))
    return found


def batch(rows: list[tuple[int, int]]) -> RowBatch:
    """Rows as (request, position)."""
    return RowBatch(
        requests=tuple(Request(f"r{n}", f"r{n}", "m") for n in range(4)),
        request_index=tuple(owner for owner, _ in rows),
        positions=tuple(position for _, position in rows),
        token_ids=(1,) * len(rows),
        phases=(Phase.COMPLETION,) * len(rows),
        layer=2,
        vectors=torch.zeros(len(rows), 2),
    )


@settings(max_examples=120, deadline=None)
@given(
    POOLS, st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 2**31), st.data()
)
def test_rows_that_come_in_parts_are_pooled_as_if_one_by_one(
    pool: Pool, parts: list[int], seed: int, data: st.DataObject
) -> None:
    chance = np.random.default_rng(seed)
    rows = list(chance.normal(size=(sum(parts), M)).astype(np.float32) * 5)
    broken = data.draw(st.integers(-1, len(rows) - 1))
    if broken >= 0:
        rows[broken][1] = np.nan
    here, found, start = ScorePool(pool, M), [], 0
    for count in parts:
        places = [(0, start + n) for n in range(count)]
        found.append(here.pooled(batch(places), np.stack(rows[start : start + count])))
        start += count
    np.testing.assert_allclose(np.concatenate(found), naive(pool, rows), rtol=1e-3, atol=2e-4)


@given(POOLS, st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_requests_in_one_batch_do_not_mix(pool: Pool, seed: int) -> None:
    chance = np.random.default_rng(seed)
    together, alone = ScorePool(pool, M), [ScorePool(pool, M) for _ in range(3)]
    for step in range(12):
        owners = [n for n in range(3) if chance.random() < 0.9]
        scores = chance.normal(size=(len(owners), M)).astype(np.float32)
        found = together.pooled(batch([(n, step) for n in owners]), scores)
        for row, owner in enumerate(owners):
            expected = alone[owner].pooled(batch([(owner, step)]), scores[row : row + 1])
            np.testing.assert_allclose(found[row], expected[0], rtol=1e-5)


@pytest.mark.parametrize("kind", ["ema", "max"])
def test_a_gap_in_the_positions_begins_anew(kind: Any) -> None:
    here = ScorePool(Pool(kind, 8), M)
    high, low = np.full((1, M), 50.0, np.float32), np.full((1, M), 1.0, np.float32)
    here.pooled(batch([(0, 5)]), high)
    gap = here.pooled(batch([(0, 7)]), low)
    assert np.array_equal(gap, ScorePool(Pool(kind, 8), M).pooled(batch([(0, 7)]), low))
    inside = ScorePool(Pool(kind, 8), M).pooled(
        batch([(0, 5), (0, 7)]), np.concatenate([high, low])
    )
    assert np.array_equal(inside[1], gap[0])


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STATE_BYTES", 2 * 4 * 7 * M)
    here = ScorePool(Pool("max", 8), M)
    for owner in range(4):
        here.pooled(batch([(owner, 0)]), np.zeros((1, M), np.float32))
    assert list(here._known) == ["r2", "r3"]


@pytest.mark.parametrize("text", ["", "ema", "ema:", "ema:1", "max:65", "mean:4", "ema:-2", "None"])
def test_what_is_no_pool_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="pool"):
        Pool.parse(text)


@pytest.mark.parametrize("text", ["ema:8", "max:4"])
def test_a_pool_reads_as_it_is_written(text: str) -> None:
    assert str(Pool.parse(text)) == text
    assert Pool.parse("none") is None


# -- in a set of directions -------------------------------------------------------------------

D = 6


def calibrated_on_runs(pool: Pool | None, phase_shift: float = 0.0) -> Any:
    """Rows in runs of 50 whose noise is the same for three rows each, as neighbours are alike."""
    chance = np.random.default_rng(4)
    noise = np.repeat(chance.normal(size=(4_000, D)), 3, axis=0)
    is_prompt = np.arange(len(noise)) % 50 < 25
    noise[is_prompt, 0] += phase_shift
    return calibrated(
        ("first", "second"), torch.eye(D)[:2], torch.from_numpy(noise), torch.from_numpy(is_prompt),
        base_model="m", layer=2, provenance={}, pool=pool, runs=np.arange(len(noise)) // 50,
    ), noise, is_prompt  # fmt: skip


@pytest.mark.parametrize("text", ["ema:6", "max:4"])
def test_the_threshold_of_each_phase_lets_its_share_of_ordinary_rows_pass(text: str) -> None:
    found, noise, is_prompt = calibrated_on_runs(Pool.parse(text), phase_shift=1.0)
    scores = found.pooled_scores(
        torch.from_numpy(noise), torch.from_numpy(is_prompt), np.arange(len(noise)) // 50
    ).numpy()
    largest = scores.max(axis=1)
    for phase, wanted in ((Phase.PROMPT, is_prompt), (Phase.COMPLETION, ~is_prompt)):
        for share in (0.1, 0.02):
            over = float(np.mean(largest[wanted] >= found.threshold(phase, share)))
            assert over == pytest.approx(share, rel=0.15)


@pytest.mark.parametrize("text", ["ema:6", "max:4"])
def test_a_pooled_set_is_read_as_it_was_written(tmp_path: Path, text: str) -> None:
    made, *_ = calibrated_on_runs(Pool.parse(text))
    write_directions(tmp_path / "a.safetensors", made)
    found = read_directions(tmp_path / "a.safetensors")
    assert str(found.pool) == text
    for phase in (Phase.PROMPT, Phase.COMPLETION):
        kept, expected = found.scales[phase].pooled, made.scales[phase].pooled
        assert kept is not None
        assert torch.equal(kept, expected)
    assert len(SHARES) == len(found.scales[Phase.PROMPT].largest)


def test_a_set_without_a_pool_is_written_as_before(tmp_path: Path) -> None:
    made, *_ = calibrated_on_runs(None)
    write_directions(tmp_path / "a.safetensors", made)
    assert b'"format\\": \\"1\\"' in (tmp_path / "a.safetensors").read_bytes()[:4096]


def test_the_screen_pools_over_forward_passes_as_over_one() -> None:
    made, noise, _ = calibrated_on_runs(Pool("ema", 6))
    paid = ScreenSettings(decode_share=0.3, random_share=0.0, budget=BudgetSettings(1e6, 1_000_000))
    rows = torch.from_numpy(noise[:30]).float()

    def of(first: int, last: int) -> RowBatch:
        count = last - first
        return RowBatch(
            (Request("r", "r", "m"),), (0,) * count, tuple(range(first, last)), (1,) * count,
            (Phase.COMPLETION,) * count, 2, rows[first:last],
        )  # fmt: skip

    whole = ScoredScreen(paid, made, clock=ManualClock()).choose(of(0, 30))
    parts = ScoredScreen(paid, made, clock=ManualClock())
    pieces = [(0, 12), *((n, n + 1) for n in range(12, 30))]
    chosen = [
        (first + c.row, c.scores) for first, last in pieces for c in parts.choose(of(first, last))
    ]
    assert [row for row, _ in chosen] == [c.row for c in whole]
    assert len(whole) > 3
    for (_, scores), choice in zip(chosen, whole, strict=True):
        assert scores == pytest.approx(choice.scores, abs=2e-3)
        assert all(math.isfinite(score) for score in scores.values())


def test_rows_without_their_order_calibrate_no_pool() -> None:
    with pytest.raises(ValueError, match="order"):
        calibrated(
            ("a",), torch.eye(D)[:1], torch.randn(100, D), torch.arange(100) % 2 == 0,
            base_model="m", layer=2, provenance={}, pool=Pool("ema", 4),
        )  # fmt: skip
