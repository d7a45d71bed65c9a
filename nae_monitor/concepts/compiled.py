"""From rows and concepts to a calibrated set of directions that beat chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from nae_monitor.concepts.build import Built
from nae_monitor.concepts.rows import LabelledRows
from nae_monitor.screen import Directions, Pool
from nae_monitor.screen.directions import calibrated, with_anomaly

FIT_SHARE = 0.7  # of ordinary documents: their covariance; the others tell what scores mean
MIN_FOLLOWING = 0.5  # of rows, to pool scores over tokens
RANDOM_DIRECTIONS, RANDOM_QUANTILE = 200, 0.975


@dataclass(frozen=True, eq=False, slots=True)
class Ordinary:
    """Ordinary rows of documents to fit on, and of others to calibrate on."""

    fit: LabelledRows
    scale: LabelledRows

    @classmethod
    def of(cls, rows: LabelledRows) -> Ordinary:
        """The ordinary ones among rows, split by document."""
        return cls(*rows.ordinary.halves(FIT_SHARE))


@dataclass(frozen=True, eq=False, slots=True)
class Beaten:
    """What each direction reached against chance: AUROC of hostile against ordinary documents."""

    aurocs: Mapping[str, float]
    chance: float  # that random directions pass once in forty

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of directions above chance."""
        return tuple(name for name, auroc in self.aurocs.items() if auroc > self.chance)


def against_chance(built: Built, rows: LabelledRows, *, seed: int = 0) -> Beaten:
    """Each direction alone on rows that nothing was fitted on, beside random directions."""
    chance = np.random.default_rng(seed).normal(size=(RANDOM_DIRECTIONS, rows.unit.shape[1]))
    random = [_auroc(rows, direction) for direction in chance]
    return Beaten(
        {n: _auroc(rows, w) for n, w in zip(built.names, built.weights, strict=True)},
        float(np.quantile(random, RANDOM_QUANTILE)),
    )


def directions_of(
    built: Built,
    scale: LabelledRows,
    *,
    base_model: str,
    layer: int,
    provenance: Mapping[str, Any],
    pool: Pool | None = None,
) -> Directions:
    """The set, calibrated on ordinary rows that it was not fitted on.

    Raises:
        ValueError: a phase has too few rows; or scores are to be pooled, and most rows do not
            follow one another.
    """
    runs = scale.runs
    if pool is not None and np.mean(np.diff(runs) == 0) < MIN_FOLLOWING:
        raise ValueError("its positions are not consecutive, so pooled scores mean nothing there")
    return calibrated(
        built.names,
        torch.from_numpy(built.weights),
        torch.from_numpy(scale.unit),
        torch.from_numpy(scale.is_prompt),
        base_model=base_model,
        layer=layer,
        provenance=provenance,
        pool=pool,
        runs=runs,
    )


def with_ordinary(directions: Directions, ordinary: Ordinary, rank: int) -> Directions:
    """The same, with what ordinary rows are like along their ``rank`` widest axes.

    Raises:
        ValueError: too few rows.
    """
    fit, scale = torch.from_numpy(ordinary.fit.unit), torch.from_numpy(ordinary.scale.unit)
    return with_anomaly(directions, fit, scale, torch.from_numpy(ordinary.scale.is_prompt), rank)


def only(built: Built, names: tuple[str, ...]) -> Built:
    """The directions of these names.

    Raises:
        ValueError: none is left.
    """
    kept = [index for index, name in enumerate(built.names) if name in names]
    if not kept:
        raise ValueError("no direction beats random ones")
    return Built(tuple(built.names[index] for index in kept), built.weights[kept])


def _auroc(rows: LabelledRows, direction: NDArray[np.float64]) -> float:
    """Of documents, by their highest row."""
    scores = rows.unit @ direction
    _, numbers = np.unique(rows.documents, return_inverse=True)
    best = np.full(numbers.max(initial=-1) + 1, -np.inf)
    np.maximum.at(best, numbers, scores)
    hostile = np.zeros(len(best), dtype=bool)
    hostile[numbers] = rows.hostile
    return float(roc_auc_score(hostile, best))
