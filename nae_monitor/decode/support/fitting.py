"""Fit P(unsupported) on claims whose truth could be checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from nae_monitor.decode.support.calibration import SupportModel
from nae_monitor.decode.support.signals import Signals

MIN_DOCUMENTS = 40  # with a claim of the type, below which there is no fit
MIN_OF_EACH = 10  # true ones, and untrue ones
STRENGTH = 1.0  # inverse of the penalty on the weights


@dataclass(frozen=True, slots=True)
class CheckedClaim:
    """The signals of a claim, and whether it turned out to be true."""

    signals: Signals
    is_true: bool
    digest: str  # of the document: intervals cluster by it


def fit(claims: Sequence[CheckedClaim]) -> SupportModel | None:
    """A logistic model of claims of one type.

    Returns:
        None for fewer than :data:`MIN_DOCUMENTS`, or too few claims that are true or not.
    """
    untrue = np.array([not claim.is_true for claim in claims])
    documents = len({claim.digest for claim in claims})
    if documents < MIN_DOCUMENTS or min(untrue.sum(), (~untrue).sum()) < MIN_OF_EACH:
        return None
    told = [claim.signals for claim in claims]
    samples = _usual([(s.agreeing_samples, s.samples) for s in told])
    neighbours = _usual([(s.agreeing_neighbours, s.neighbours) for s in told])
    rows = np.array([s.features(samples, neighbours) for s in told])
    mean, scale = rows.mean(0), np.maximum(rows.std(0), 1e-6)
    model = LogisticRegression(C=STRENGTH).fit((rows - mean) / scale, untrue)
    return SupportModel(
        usual_samples=samples,
        usual_neighbours=neighbours,
        mean=_plain(mean),
        scale=_plain(scale),
        weights=_plain(model.coef_[0]),
        intercept=round(float(model.intercept_[0]), 6),
    )


def _usual(counts: Sequence[tuple[int, int]]) -> float:
    texts = sum(n for _, n in counts)
    return round(sum(m for m, _ in counts) / texts, 6) if texts else 0.0


def _plain(row: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(item), 6) for item in row)
