"""The three ways to a direction, behind one call.

A direction is a difference of means, or a probe's weights, seen through the covariance of
ordinary rows: what ordinary rows vary in anyway counts for little (whitening; linear discriminant
analysis, Fisher 1936).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression

from nae_monitor.concepts.concept import NEUTRAL, Concept, themed
from nae_monitor.concepts.rows import LabelledRows, Unit

Backend = Literal["ar", "contrast", "probe", "random"]
Reconstruct = Callable[[Sequence[str]], Unit]  # texts -> [n, d] vectors, NaN where it cannot
MIN_ROWS = 20  # of a kind, to take a mean of
PROBE_C = 30.0  # inverse strength of the probe's penalty, on whitened rows


@dataclass(frozen=True, eq=False, slots=True)
class Built:
    """Directions [m, d] by name."""

    names: tuple[str, ...]
    weights: NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Whitening:
    """The mean [d] and the inverse covariance [d, d] of ordinary unit rows, shrunk (Ledoit and
    Wolf 2004).
    """

    mean: Unit
    precision: Unit

    @classmethod
    def of(cls, rows: LabelledRows) -> Whitening:
        """From ordinary rows [n, d]."""
        mean = rows.unit.mean(axis=0)
        covariance, _ = ledoit_wolf(rows.unit - mean, assume_centered=True)
        return cls(mean, np.linalg.inv(covariance))


def build(
    backend: Backend,
    rows: LabelledRows,
    whitening: Whitening,
    *,
    concepts: Sequence[Concept] = (),
    frames: Sequence[str] = (),
    reconstruct: Reconstruct | None = None,
    seed: int = 0,
) -> Built:
    """Directions of one back-end.

    Args:
        backend: ``ar`` needs ``concepts``, ``frames`` and ``reconstruct`` and no label of any row;
            ``contrast`` and ``probe`` use the kinds of hostile rows; ``random`` is the control:
            as many directions as there are concepts, or else hostile kinds.
        rows: to learn from.
        whitening: of ordinary rows.
        concepts: what the rules look for.
        frames: explanations of ordinary rows, in the verbalizer's own words.
        reconstruct: the reconstructor.
        seed: of the random directions.
    """
    if backend == "ar":
        if reconstruct is None or not concepts or not frames:
            raise ValueError("ar needs concepts, frames and a reconstructor")
        return _from_words(concepts, frames, reconstruct, whitening)
    groups = {
        str(kind): rows.unit[rows.kinds == kind]
        for kind in np.unique(rows.kinds[rows.hostile])
        if np.count_nonzero(rows.kinds == kind) >= MIN_ROWS
    }
    if backend == "random":
        names = [c.name for c in concepts] or list(groups)
        return _random(names, rows.unit.shape[1], seed)
    if backend == "probe":
        return _probes(groups, rows.ordinary.unit, whitening)
    means = {name: unit.mean(axis=0) - whitening.mean for name, unit in groups.items()}
    return _stacked({name: whitening.precision @ mean for name, mean in means.items()})


def _from_words(
    concepts: Sequence[Concept],
    frames: Sequence[str],
    reconstruct: Reconstruct,
    whitening: Whitening,
) -> Built:
    neutral = _mean_of(NEUTRAL, frames, reconstruct)
    return _stacked(
        {
            concept.name: whitening.precision
            @ (_mean_of(concept.phrases, frames, reconstruct) - neutral)
            for concept in concepts
        }
    )


def _mean_of(phrases: Sequence[str], frames: Sequence[str], reconstruct: Reconstruct) -> Unit:
    """The mean unit vector of frames that speak of ``phrases``; each frame meets each phrase in
    turn, so that every concept is seen in the same frames.
    """
    rounds = -(-len(phrases) // len(frames))
    texts = [
        text
        for number in range(len(frames) * rounds)
        for text in themed([frames[number % len(frames)]], phrases[number % len(phrases)])
    ]
    found = reconstruct(texts)
    found = found[np.isfinite(found).all(axis=1)]
    unit: Unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    mean: Unit = unit.mean(axis=0)
    return mean


def _probes(groups: Mapping[str, Unit], ordinary: Unit, whitening: Whitening) -> Built:
    """Logistic regression of each kind against ordinary rows, on whitened rows."""
    root = np.linalg.cholesky(whitening.precision)
    negative = (ordinary - whitening.mean) @ root
    found = {}
    for name, unit in groups.items():
        features = np.concatenate([(unit - whitening.mean) @ root, negative])
        labels = np.arange(len(features)) < len(unit)
        model = LogisticRegression(C=PROBE_C, max_iter=500).fit(features, labels)
        found[name] = root @ model.coef_[0]
    return _stacked(found)


def _random(names: Sequence[str], d_model: int, seed: int) -> Built:
    chance = np.random.default_rng(seed)
    return _stacked({name: chance.normal(size=d_model) for name in names})


def _stacked(weights: Mapping[str, Unit]) -> Built:
    return Built(tuple(weights), np.stack(list(weights.values())))
