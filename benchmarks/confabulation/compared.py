"""P(unsupported) beside what it must beat, all fitted on one split and measured on another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from confabulation.checked import Checked
from confabulation.figures import (
    COVERAGES,
    auroc,
    brier,
    ece,
    ece_of_chance,
    fifths,
    risk_at,
    with_interval,
)
from nae_monitor.decode.support import ClaimType, SupportModel
from nae_monitor.decode.support.fitting import fit
from nae_monitor.train.intervals import Measure

OURS = "P(unsupported)"
CONSTANT = "constant (base rate)"
FVE = "FVE alone"
SINGLE: Mapping[str, Callable[[Checked], float]] = {
    "recurrence over samples alone": lambda c: _share(
        c.claim.signals.agreeing_samples, c.claim.signals.samples
    ),
    "recurrence over neighbours alone": lambda c: _share(
        c.claim.signals.agreeing_neighbours, c.claim.signals.neighbours
    ),
    FVE: lambda c: c.claim.signals.fve,
    "rank alone": lambda c: c.claim.signals.rank_share,
    "gain over empty text alone": lambda c: c.gain_empty,
    "gain over the last token alone": lambda c: c.gain_token,
    "share of the text in the transcript": lambda c: c.grounded_share,
}


@dataclass(frozen=True, slots=True)
class Estimator:
    """One way to estimate, and its figures on the split it was not fitted on."""

    name: str
    figures: Mapping[str, Measure]  # "AUROC", "ECE", "Brier", "risk at 50 %", …


@dataclass(frozen=True, slots=True)
class Comparison:
    """The estimators of one type of claim."""

    type: ClaimType
    fitted_claims: int
    claims: int
    untrue: Measure  # share of the measured claims
    estimators: tuple[Estimator, ...]
    ahead: Measure  # AUROC of ours less that of FVE alone
    spared: Measure  # risk at full coverage less that at half
    ece_floor: float  # of estimates that were exactly right, on as many claims
    fifths: Sequence[tuple[float, float]]  # ours, by bins: estimated, and untrue


def compare(
    kind: ClaimType,
    fitted: Sequence[Checked],
    thinned: Sequence[Checked],
    measured: Sequence[Checked],
    seed: int,
) -> tuple[SupportModel, Comparison] | None:
    """Fit on one split, measure on the other; None where there are too few claims.

    Args:
        kind: of claim.
        fitted: its claims of the first split, for the baselines.
        thinned: the same and with fewer texts, for the model that runs with fewer, too.
        measured: its claims of the second split.
        seed: of the intervals.
    """
    model = fit([one.claim for one in thinned])
    if model is None or not measured:
        return None
    untrue = np.array([not one.claim.is_true for one in measured])
    digests = [one.claim.digest for one in measured]
    ours = np.array([model.unsupported(one.claim.signals) for one in measured])
    estimates = {OURS: ours, CONSTANT: np.full(len(measured), _base(fitted))}
    for name, read in SINGLE.items():
        estimates[name] = _alone(read, fitted, measured)

    def figures(row: np.ndarray) -> dict[str, Measure]:
        wanted = {"AUROC": auroc, "ECE": ece, "Brier": brier}
        wanted |= {f"risk at {share:.0%}": risk_at(share) for share in COVERAGES}
        return {
            name: with_interval(name, statistic, row, untrue, digests, seed)
            for name, statistic in wanted.items()
        }

    paired = np.stack([ours, estimates[FVE]], axis=1)
    return model, Comparison(
        kind,
        len(fitted),
        len(measured),
        with_interval("untrue", lambda _, u: float(u.mean()), ours, untrue, digests, seed),
        tuple(Estimator(name, figures(row)) for name, row in estimates.items()),
        with_interval("ahead", _ahead, paired, untrue, digests, seed),
        with_interval("spared", _spared, ours, untrue, digests, seed),
        ece_of_chance(ours, seed),
        fifths(ours, untrue),
    )


def _alone(
    read: Callable[[Checked], float], fitted: Sequence[Checked], measured: Sequence[Checked]
) -> np.ndarray:
    """A logistic model of one column."""
    rows, wanted = (np.array([[read(one)] for one in part]) for part in (fitted, measured))
    mean, scale = rows.mean(), max(float(rows.std()), 1e-6)
    untrue = np.array([not one.claim.is_true for one in fitted])
    model = LogisticRegression().fit((rows - mean) / scale, untrue)
    found: np.ndarray = model.predict_proba((wanted - mean) / scale)[:, 1]
    return found


def _base(fitted: Sequence[Checked]) -> float:
    return float(np.mean([not one.claim.is_true for one in fitted]))


def _ahead(both: np.ndarray, untrue: np.ndarray) -> float:
    return auroc(both[:, 0], untrue) - auroc(both[:, 1], untrue)


def _spared(estimates: np.ndarray, untrue: np.ndarray) -> float:
    return risk_at(1.0)(estimates, untrue) - risk_at(0.5)(estimates, untrue)


def _share(agreeing: int, texts: int) -> float:
    return agreeing / texts if texts else 0.0
