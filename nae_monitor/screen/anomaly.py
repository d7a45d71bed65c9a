"""How far a row lies from ordinary rows, whatever it lies towards.

Mahalanobis distance under probabilistic principal components (Tipping and Bishop 1999): along the
``r`` widest axes of ordinary unit rows each in its own deviations, beside them in one deviation
for all that is left: D^2 = sum_i (a_i / s_i)^2 + |rest|^2 / v.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from nae_monitor.records import Phase

NAME = "anomaly"  # of its score, as rules ask for it: score.anomaly
MIN_VARIANCE = 1e-12
Row = NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class AnomalyScale:
    """What ordinary rows of one phase come to."""

    mean: float  # of the distance
    deviation: float  # above 0
    largest: Row  # [shares]: the score that this share of ordinary rows reaches, ascending


@dataclass(frozen=True, eq=False)
class Anomaly:
    """The distribution of ordinary unit rows, in a basis of ``r`` axes."""

    mean: Row  # [d]
    basis: Row  # [r, d], orthonormal
    spread: Row  # [r], above 0: deviations along the axes
    rest: float  # above 0: variance of each dimension beside them
    scales: Mapping[Phase, AnomalyScale]

    @property
    def columns(self) -> Row:
        """What unit rows are multiplied with for :meth:`scores`: [r + 1, d]."""
        return np.concatenate([self.basis, self.mean[None]])

    @cached_property
    def _mean_products(self) -> tuple[Row, np.float32]:
        return self.basis @ self.mean, np.float32(self.mean @ self.mean)

    def distances(self, products: Row) -> Row:
        """D of rows [n], from their products with :attr:`columns` [n, r + 1]."""
        offset, square = self._mean_products
        along = products[:, :-1] - offset
        whole = 1 - 2 * products[:, -1] + square
        beside = np.maximum(whole - (along * along).sum(axis=1), 0)
        scaled = along / self.spread
        found: Row = np.sqrt((scaled * scaled).sum(axis=1) + beside / np.float32(self.rest))
        return found

    def scores(self, products: Row, is_prompt: NDArray[np.bool_]) -> Row:
        """The distances in deviations of those of ordinary rows of the same phase [n]."""
        prompt, completion = self.scales[Phase.PROMPT], self.scales[Phase.COMPLETION]
        means = np.where(is_prompt, prompt.mean, completion.mean)
        deviations = np.where(is_prompt, prompt.deviation, completion.deviation)
        found: Row = ((self.distances(products) - means) / deviations).astype(np.float32)
        return found


def fitted(
    fit: torch.Tensor,
    scale: torch.Tensor,
    is_prompt: torch.Tensor,
    *,
    rank: int,
    cuts: torch.Tensor,
) -> Anomaly:
    """From ordinary unit rows.

    Args:
        fit: [n, d], to learn the distribution from.
        scale: [k, d], others, to tell what distances mean.
        is_prompt: [k] bool.
        rank: axes, less than d and n.
        cuts: [shares] quantiles, ascending.

    Raises:
        ValueError: too few rows.
    """
    count, width = fit.shape
    if not 1 <= rank < min(count, width):
        raise ValueError(f"{count} ordinary rows of width {width} have no {rank} widest axes")
    rows = fit.double()
    mean = rows.mean(0)
    centred = rows - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / count)  # ascending
    rest = float(variances[: width - rank].mean().clamp_min(MIN_VARIANCE))
    plain = Anomaly(
        mean.float().numpy(),
        axes[:, width - rank :].T.float().contiguous().numpy(),
        variances[width - rank :].clamp_min(MIN_VARIANCE).sqrt().float().numpy(),
        rest,
        {},
    )
    distances = torch.from_numpy(plain.distances(scale.float().numpy() @ plain.columns.T))
    scales = {}
    for phase, wanted in ((Phase.PROMPT, is_prompt), (Phase.COMPLETION, ~is_prompt)):
        mine = distances[wanted]
        if len(mine) < 2:
            raise ValueError(f"no ordinary rows of the {phase}")
        middle, deviation = float(mine.mean()), float(mine.std().clamp_min(1e-9))
        largest = torch.quantile((mine - middle) / deviation, cuts).numpy()
        scales[phase] = AnomalyScale(middle, deviation, largest)
    return Anomaly(plain.mean, plain.basis, plain.spread, rest, scales)


def to_tensors(anomaly: Anomaly) -> dict[str, torch.Tensor]:
    """As it lies in a file of directions."""
    found = {
        f"{NAME}.mean": torch.from_numpy(anomaly.mean),
        f"{NAME}.basis": torch.from_numpy(anomaly.basis),
        f"{NAME}.spread": torch.from_numpy(anomaly.spread),
        f"{NAME}.rest": torch.tensor([anomaly.rest], dtype=torch.float32),
    }
    for phase, scale in anomaly.scales.items():
        found[f"{NAME}.calibration.{phase}"] = torch.tensor([scale.mean, scale.deviation])
        found[f"{NAME}.quantiles.{phase}"] = torch.from_numpy(scale.largest)
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def from_tensors(tensors: Mapping[str, torch.Tensor], d_model: int, shares: int) -> Anomaly | None:
    """Out of a file of directions; None where it holds none.

    Raises:
        ValueError: what it holds is no such distribution.
    """
    if f"{NAME}.basis" not in tensors:
        return None
    given = {name: t.to(torch.float32) for name, t in tensors.items() if name.startswith(NAME)}
    basis = given[f"{NAME}.basis"]
    rank = basis.shape[0] if basis.dim() == 2 else 0
    shapes: dict[str, tuple[int, ...]] = {
        "mean": (d_model,), "basis": (rank, d_model), "spread": (rank,), "rest": (1,),
        **{f"calibration.{phase}": (2,) for phase in (Phase.PROMPT, Phase.COMPLETION)},
        **{f"quantiles.{phase}": (shares,) for phase in (Phase.PROMPT, Phase.COMPLETION)},
    }  # fmt: skip
    for name, shape in shapes.items():
        found = given.get(f"{NAME}.{name}")
        if found is None or found.shape != shape or not torch.isfinite(found).all() or not rank:
            raise ValueError(f"its {NAME}.{name} is not {list(shape)} finite numbers")
    if not torch.allclose(basis @ basis.T, torch.eye(rank), atol=1e-3):
        raise ValueError("the axes of its anomaly are not orthonormal")
    scales = {}
    for phase in (Phase.PROMPT, Phase.COMPLETION):
        mean, deviation = given[f"{NAME}.calibration.{phase}"].tolist()
        largest = given[f"{NAME}.quantiles.{phase}"]
        if deviation <= 0 or (largest.diff() < 0).any():
            raise ValueError(f"its scale of anomalies of the {phase} is out of order")
        scales[phase] = AnomalyScale(mean, deviation, largest.numpy())
    spread, rest = given[f"{NAME}.spread"], float(given[f"{NAME}.rest"])
    if (spread <= 0).any() or rest <= 0:
        raise ValueError("a variance of its anomaly is not above 0")
    return Anomaly(given[f"{NAME}.mean"].numpy(), basis.numpy(), spread.numpy(), rest, scales)
