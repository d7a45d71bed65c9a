"""Pooled scores of whole conversations."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from detecting.conversations import Case
from detecting.pooled import POOLS, SCALES, pooled, poolings
from detecting.rows import Talk
from detecting.work import Material
from hypothesis import given
from hypothesis import strategies as st
from pooling import claims_of, shown

from nae_monitor.screen import Directions, Pool
from nae_monitor.screen.directions import calibrated
from nae_monitor.train.corpus import TrainingDocument

D = 8
SIZES = {
    ("fit", True): 30,
    ("fit", False): 30,
    ("threshold", False): 120,
    ("test", True): 40,
    ("test", False): 40,
    ("foreign", False): 4,
}


def naive(pool: Pool, scores: list[float], positions: list[int]) -> list[float]:
    found: list[float] = []
    window: list[float] = []
    average = 0.0
    for row, score in enumerate(scores):
        if row and positions[row] != positions[row - 1] + 1:
            window, average = [], 0.0
        window.append(score)
        average += (score - average) * 2 / (pool.tokens + 1)
        found.append(max(window[-pool.tokens :]) if pool.kind == "max" else average)
    return found


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.integers(1, 3)), min_size=1, max_size=40),
    st.sampled_from([pool for pool in POOLS if pool is not None]),
)
def test_a_pool_begins_anew_behind_a_gap(rows: list[tuple[float, int]], pool: Pool) -> None:
    positions = np.cumsum([step for _, step in rows])
    scores = np.array([[score] for score, _ in rows], dtype=np.float32)
    expected = naive(pool, [score for score, _ in rows], positions.tolist())
    found = pooled(pool, scores, positions)[:, 0]
    assert found == pytest.approx(expected, abs=1e-4)


def made_up(strength: float) -> Material:
    """Hostile conversations lie along the first axis a little at each of many tokens."""
    chance = torch.Generator().manual_seed(5)

    def talk(digest: str, hostile: bool) -> Talk:
        vectors = torch.randn(60, D, generator=chance)
        vectors[10:40, 0] += strength if hostile else 0.0
        positions = torch.arange(20, 80)
        return Talk(digest, tuple(range(80)), 60, positions, vectors, torch.zeros(60))

    cases: list[Case] = []
    talks: dict[str, Talk] = {}
    for (part, hostile), count in SIZES.items():
        for number in range(count):
            kind = "fraud" if hostile else "planning"
            document = TrainingDocument(f"{part} {hostile} {number}", "tests", kind)
            case = Case(document, part, kind, str(len(cases)))  # type: ignore[arg-type]
            cases.append(case)
            talks[case.digest] = talk(case.digest, hostile)
    directions = both()
    scores = {digest: {"ar": np.zeros(60)} for digest in talks}
    chosen = {"ar": directions, "contrast": directions}
    return Material(tuple(cases), talks, chosen, scores, {})  # type: ignore[arg-type]


def both() -> Directions:
    rows = torch.randn(4_000, D, generator=torch.Generator().manual_seed(1))
    return calibrated(
        ("first", "second"), torch.eye(D)[:2], rows, torch.arange(4_000) % 2 == 0,
        base_model="m", layer=2, provenance={},
    )  # fmt: skip


def test_an_average_finds_what_each_token_shows_a_little_of() -> None:
    every = list(islice(poolings(made_up(1.2)), 2 * len(POOLS)))  # of `ar`
    found = {(one.scale, str(one.pool)): one for one in every}
    assert [pool for scale, pool in found if scale == "shipped"] == [
        "None", "ema:4", "ema:8", "ema:16", "max:4", "max:8", "max:16",
    ]  # fmt: skip
    for scale in SCALES:
        average, plain = found[scale, "ema:8"], found[scale, "None"]
        assert plain.gain is None
        assert average.gain is not None
        assert average.gain.low > 0
        assert average.area.value > plain.area.value > 0.5
        (row,) = [c for c in claims_of(average) if c.name.endswith("gain in TPR")]
        assert (row.value, row.bound) == (average.gain.value, None)
    assert shown(every).row_count == len(every) == 14
