"""Distance from ordinary rows, against the covariance written out in full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from nae_monitor.errors import ConfigurationError
from nae_monitor.records import Phase, Request, RowBatch, SampleReason
from nae_monitor.screen import Directions, ScoredScreen, read_directions, write_directions
from nae_monitor.screen.anomaly import Anomaly
from nae_monitor.screen.directions import calibrated, with_anomaly
from nae_monitor.screen.scorer import Scorer
from nae_monitor.settings import BudgetSettings, ScreenSettings
from nae_monitor.testing import ManualClock

D = 12


def ordinary(count: int, seed: int) -> torch.Tensor:
    """Unit rows around a mean, wide along some axes and narrow along others."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, D, generator=random) * torch.linspace(1.5, 0.1, D) + 1.0
    return torch.nn.functional.normalize(rows, dim=1)


def made(rank: int = 4, seed: int = 0) -> Directions:
    scale = ordinary(4_000, seed + 1)
    is_prompt = torch.arange(4_000) % 2 == 0
    plain = calibrated(
        ("first",), torch.eye(D)[:1], scale, is_prompt, base_model="m", layer=2, provenance={}
    )
    return with_anomaly(plain, ordinary(3_000, seed), scale, is_prompt, rank)


def anomaly_of(directions: Directions) -> Anomaly:
    assert directions.anomaly is not None
    return directions.anomaly


def anomalies_of(
    directions: Directions, rows: torch.Tensor, read: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """As the screen gets them: out of the product that scores the rows, too."""
    phases = [Phase.PROMPT if one else Phase.COMPLETION for one in read.tolist()]
    products = Scorer(directions, rows.device)(rows, phases)[:, len(directions.names) :]
    return anomaly_of(directions).scores(products.numpy(), read)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, D - 1), st.integers(0, 999))
def test_the_distance_is_that_of_mahalanobis_under_the_written_out_covariance(
    rank: int, seed: int
) -> None:
    found = anomaly_of(made(rank, seed))
    fit = ordinary(3_000, seed).double().numpy()
    mean = fit.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(fit.T, bias=True))
    kept = np.concatenate([np.full(D - rank, variances[: D - rank].mean()), variances[D - rank :]])
    precision = axes @ np.diag(1 / kept) @ axes.T
    rows = torch.nn.functional.normalize(
        torch.randn(20, D, generator=torch.Generator().manual_seed(seed)), dim=1
    )
    away = rows.double().numpy() - mean
    expected = np.sqrt(np.einsum("ni,ij,nj->n", away, precision, away))
    distances = found.distances(rows.numpy() @ found.columns.T)
    np.testing.assert_allclose(distances, expected, rtol=2e-3)


def test_ordinary_rows_score_about_nothing_and_strange_ones_much() -> None:
    found = made()
    rows = torch.cat([ordinary(500, 9), -ordinary(50, 9)])
    read = np.zeros(len(rows), dtype=bool)
    anomalies = anomalies_of(found, rows, read)
    assert abs(float(anomalies[:500].mean())) < 0.2
    assert float(anomalies[500:].min()) > float(anomalies[:500].max())


def test_the_threshold_lets_its_share_of_ordinary_rows_pass() -> None:
    found, rows = made(), ordinary(20_000, 77)
    for phase in (Phase.PROMPT, Phase.COMPLETION):
        read = np.full(len(rows), phase is Phase.PROMPT)
        anomalies = anomalies_of(found, rows, read)
        over = float(np.mean(anomalies >= found.anomaly_threshold(phase, 0.02)))
        assert over == pytest.approx(0.02, rel=0.4)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    before = made()
    write_directions(tmp_path / "a.safetensors", before)
    after = read_directions(tmp_path / "a.safetensors")
    write_directions(tmp_path / "b.safetensors", after)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    read = np.arange(50) % 2 == 0
    np.testing.assert_array_equal(
        anomalies_of(before, ordinary(50, 3), read), anomalies_of(after, ordinary(50, 3), read)
    )


Change = Callable[[dict[str, torch.Tensor]], Any]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("anomaly.mean"),
        lambda t: t.update({"anomaly.mean": t["anomaly.mean"][:-1]}),
        lambda t: t.update({"anomaly.basis": t["anomaly.basis"] * 2}),
        lambda t: t.update({"anomaly.basis": t["anomaly.basis"][:0]}),
        lambda t: t["anomaly.spread"].zero_(),
        lambda t: t["anomaly.rest"].neg_(),
        lambda t: t["anomaly.calibration.prompt"].fill_(-1),
        lambda t: t["anomaly.quantiles.completion"].neg_(),
        lambda t: t["anomaly.mean"].fill_(float("nan")),
    ],
)
def test_a_damaged_one_is_refused(tmp_path: Path, change: Change) -> None:
    path = tmp_path / "a.safetensors"
    write_directions(path, made())
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(ConfigurationError, match="anomal"):
        read_directions(path)


@pytest.mark.parametrize("rank", [0, D, 5_000])
def test_more_axes_than_there_are_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="widest axes"):
        made(rank)


# -- in the screen ----------------------------------------------------------------------------


def batch(rows: torch.Tensor) -> RowBatch:
    count = len(rows)
    return RowBatch(
        (Request("r", "r", "m"),), (0,) * count, tuple(range(count)), (1,) * count,
        (Phase.COMPLETION,) * count, 2, rows,
    )  # fmt: skip


def screen(**changes: Any) -> ScoredScreen:
    paid = {"decode_share": 0.01, "random_share": 0.0, "budget": BudgetSettings(1e6, 1_000_000)}
    return ScoredScreen(ScreenSettings(**{**paid, **changes}), made(), clock=ManualClock())


def test_a_row_far_from_ordinary_ones_is_bought_though_no_direction_points_to_it() -> None:
    rows = ordinary(200, 5)
    rows[17] = -rows[17]
    rows[17, 0] = -1.0  # and against the only direction
    choices = {choice.row: choice for choice in screen().choose(batch(rows))}
    assert choices[17].reason is SampleReason.SCORE
    assert choices[17].scores["anomaly"] > 10
    assert choices[17].scores["first"] < 0


def test_rows_bought_by_chance_carry_their_anomaly_too() -> None:
    choices = screen(random_share=1.0, decode_share=0.5).choose(batch(ordinary(100, 6)))
    assert choices
    assert all("anomaly" in choice.scores for choice in choices)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_comes_first_all_the_same(broken: float) -> None:
    rows = ordinary(20, 7)
    rows[4, 1] = broken
    offers = screen().offers(batch(rows))
    choice, _ = offers.waiting[0]
    assert (choice.row, dict(choice.scores)) == (4, {})
