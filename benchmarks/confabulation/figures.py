"""How good an estimate of P(unsupported) is: calibration, ranking, and what refusing buys."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from nae_monitor.train.intervals import QUANTILES, Clusters, Measure

BINS = 5  # of equal counts
COVERAGES = (1.0, 0.75, 0.5, 0.25)
ROUNDS = 300

Statistic = Callable[[np.ndarray, np.ndarray], float]


def ece(estimates: np.ndarray, untrue: np.ndarray) -> float:
    """Expected calibration error over bins of equal counts; estimates and outcomes [n]."""
    parts = np.array_split(np.argsort(estimates, kind="stable"), min(BINS, len(estimates)))
    gaps = [abs(estimates[p].mean() - untrue[p].mean()) * len(p) for p in parts if len(p)]
    return float(sum(gaps) / len(estimates))


def fifths(estimates: np.ndarray, untrue: np.ndarray) -> list[tuple[float, float]]:
    """Of the bins of :func:`ece`: the mean estimate, and the share that is untrue."""
    parts = np.array_split(np.argsort(estimates, kind="stable"), min(BINS, len(estimates)))
    return [(float(estimates[p].mean()), float(untrue[p].mean())) for p in parts if len(p)]


def ece_of_chance(estimates: np.ndarray, seed: int) -> float:
    """The ECE that estimates which are exactly right would show on so few claims, on average."""
    rng = np.random.default_rng(seed)
    drawn = (rng.random(len(estimates)) < estimates for _ in range(ROUNDS // 2))
    return float(np.mean([ece(estimates, outcome) for outcome in drawn]))


def auroc(estimates: np.ndarray, untrue: np.ndarray) -> float:
    """How well the estimates rank untrue claims above true ones; NaN with one class alone."""
    if untrue.all() or not untrue.any():
        return float("nan")
    return float(roc_auc_score(untrue, estimates))


def brier(estimates: np.ndarray, untrue: np.ndarray) -> float:
    """Mean squared error of the estimates."""
    return float(((estimates - untrue) ** 2).mean())


def risk_at(coverage: float) -> Statistic:
    """The share of untrue claims among the ``coverage`` that are held likeliest to be true.

    Claims that tie at the border count by their mean, so that order decides nothing.
    """

    def risk(estimates: np.ndarray, untrue: np.ndarray) -> float:
        kept = max(1, round(coverage * len(estimates)))
        border = np.sort(estimates)[kept - 1]
        inside, tied = estimates < border, estimates == border
        wrong = untrue[inside].sum() + (kept - inside.sum()) * untrue[tied].mean()
        return float(wrong / kept)

    return risk


def with_interval(
    name: str,
    statistic: Statistic,
    estimates: np.ndarray,
    untrue: np.ndarray,
    digests: Sequence[str],
    seed: int,
) -> Measure:
    """The statistic with a 95 % interval that draws whole documents."""
    rows = Clusters.by_document(digests, seed).rows
    rng = np.random.default_rng(seed)
    drawn: list[float] = []
    for _ in range(ROUNDS):
        index = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        drawn.append(statistic(estimates[index], untrue[index]))
    low, high = np.nanquantile(drawn, QUANTILES)
    return Measure(name, statistic(estimates, untrue), float(low), float(high))
