"""Means and ratios with 95 % intervals from a bootstrap that draws whole documents.

Rows of one document resemble each other; drawing rows would make the intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROUNDS = 1000
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the table. ``low`` and ``high`` are NaN where no interval is meant."""

    name: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    unit: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class Clusters:
    """Which rows belong together; the same seed draws the same documents for every measure."""

    rows: tuple[np.ndarray, ...]
    seed: int

    @classmethod
    def by_document(cls, digests: Sequence[str], seed: int) -> Clusters:
        """One cluster a digest; row i has ``digests[i]``."""
        rows: dict[str, list[int]] = {}
        for i, digest in enumerate(digests):
            rows.setdefault(digest, []).append(i)
        return cls(tuple(np.array(r) for r in rows.values()), seed)

    def mean(self, name: str, values: np.ndarray, unit: str = "") -> Measure:
        """The mean of ``values`` [n]."""
        return self.ratio(name, values, np.ones(len(values)), unit)

    def ratio(self, name: str, values: np.ndarray, weights: np.ndarray, unit: str = "") -> Measure:
        """sum(values) / sum(weights), both [n]."""
        drawn = np.random.default_rng(self.seed).integers(
            len(self.rows), size=(ROUNDS, len(self.rows))
        )
        above, below = (
            np.array([part[rows].sum() for rows in self.rows])[drawn].sum(1)
            for part in (values, weights)
        )
        low, high = np.quantile(above / below, QUANTILES)
        return Measure(name, float(values.sum() / weights.sum()), float(low), float(high), unit)

    def fve(self, name: str, error: np.ndarray, distance: np.ndarray) -> Measure:
        """1 - mean(error) / mean(distance), squared distances [n] of unit vectors."""
        lost = self.ratio(name, error, distance)
        return Measure(name, 1 - lost.value, 1 - lost.high, 1 - lost.low)
