"""Recall at a false-positive rate, areas under the curve, and intervals over conversations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

Scores = NDArray[np.float64]
FALSE_POSITIVES = 0.01
PARTIAL = 0.05  # of false positives: how far the partial area goes
ROUNDS = 1_000
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval over resampled conversations."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, eq=False, slots=True)
class Scored:
    """Scores of conversations by what they are for; higher is more suspicious."""

    threshold: Scores  # ordinary
    hostile: Scores  # test
    ordinary: Scores  # test
    foreign: Scores  # ordinary


def threshold_at(ordinary: Scores, share: float = FALSE_POSITIVES) -> float:
    """The lowest threshold that at most ``share`` of ordinary scores are above.

    An alert is a score above it, so that tied scores are all let through or none.
    """
    ranked = np.sort(ordinary)
    return float(ranked[len(ranked) - 1 - int(share * len(ranked))])


def recall(scored: Scored, share: float = FALSE_POSITIVES) -> float:
    """The share of hostile test conversations above the threshold."""
    return float(np.mean(scored.hostile > threshold_at(scored.threshold, share)))


def auroc(scored: Scored) -> float:
    """The chance that a hostile test conversation scores above an ordinary one, ties half."""
    ordinary = np.sort(scored.ordinary)  # by rank sums: a bootstrap asks for it often
    below = np.searchsorted(ordinary, scored.hostile, "left")
    not_above = np.searchsorted(ordinary, scored.hostile, "right")
    return float((below + not_above).mean() / (2 * len(ordinary)))


def partial_auroc(scored: Scored) -> float:
    """The area up to 5 % false positives, scaled so that chance is 0.5 (McClish 1989)."""
    both = np.concatenate([scored.hostile, scored.ordinary])
    labels = np.arange(len(both)) < len(scored.hostile)
    return float(roc_auc_score(labels, both, max_fpr=PARTIAL))


def resampled(scored: Scored, chance: np.random.Generator) -> Scored:
    """Conversations drawn anew with replacement, each sort for itself."""

    def drawn(scores: Scores) -> Scores:
        return scores[chance.integers(len(scores), size=len(scores))] if len(scores) else scores

    return Scored(*(drawn(s) for s in (
        scored.threshold, scored.hostile, scored.ordinary, scored.foreign
    )))  # fmt: skip


def interval(
    scored: Scored, figure: Callable[[Scored], float], seed: int = 0, rounds: int = ROUNDS
) -> Interval:
    """``figure`` with its interval; the threshold is chosen anew in every round."""
    chance = np.random.default_rng(seed)
    drawn = [figure(resampled(scored, chance)) for _ in range(rounds)]
    low, high = np.quantile(drawn, QUANTILES)
    return Interval(figure(scored), float(low), float(high))


def alerts_per_1000(scores: Scores, threshold: float, seed: int = 0) -> Interval:
    """Ordinary conversations above ``threshold``, of a thousand."""
    over = 1_000 * (scores > threshold)
    drawn = np.random.default_rng(seed).integers(len(over), size=(ROUNDS, len(over)))
    low, high = np.quantile(over[drawn].mean(axis=1), QUANTILES)
    return Interval(float(over.mean()), float(low), float(high))


def ratio(first: Scored, second: Scored, seed: int = 0) -> Interval:
    """How many times what ``second`` finds ``first`` does; the same conversations in each round."""

    def times(a: Scored, b: Scored) -> float:
        return recall(a) / max(recall(b), 0.5 / len(b.hostile))

    drawn = []
    for number in range(ROUNDS):
        pair = (resampled(s, np.random.default_rng([seed, number])) for s in (first, second))
        drawn.append(times(*pair))
    low, high = np.quantile(drawn, QUANTILES)
    return Interval(times(first, second), float(low), float(high))
