"""What the comparison shows, and what is claimed of it."""

from __future__ import annotations

from collections.abc import Sequence

from reporting.claims import Bound, Claim
from rich.table import Table

from confabulation.compared import CONSTANT, FVE, OURS, Comparison
from confabulation.figures import BINS
from nae_monitor.decode.support import ClaimType
from nae_monitor.train.intervals import Measure

BOUNDS = {
    "AUROC": Bound(0.665),  # what recurrence alone reached on a 27B pair
    "ECE": Bound(0.10, at_most=True),
}
SHOWN = ("AUROC", "ECE", "Brier")
RISKS = ("risk at 100%", "risk at 75%", "risk at 50%", "risk at 25%")


def tables(found: Sequence[Comparison]) -> list[Table]:
    """By type of claim; for themes every estimator; and what refusing to say buys."""
    by_type = Table(title="P(unsupported) on documents that it was not fitted on")
    for column in (
        "claim",
        "fitted on",
        "measured on",
        "untrue",
        *SHOWN,
        "ECE if exact",
        "AUROC of FVE alone",
    ):
        by_type.add_column(column)
    for one in found:
        figures = {e.name: e.figures for e in one.estimators}
        by_type.add_row(
            one.type.value,
            str(one.fitted_claims),
            str(one.claims),
            _cell(one.untrue),
            *(_cell(figures[OURS][name]) for name in SHOWN),
            f"{one.ece_floor:.3f}",
            _cell(figures[FVE]["AUROC"]),
        )
    theme = [one for one in found if one.type is ClaimType.THEME]
    return [
        by_type,
        *(_estimators(one) for one in theme),
        *(_risks(one) for one in theme),
        _fifths(found),
    ]


def _estimators(one: Comparison) -> Table:
    table = Table(title=f"Ways to estimate whether a theme is untrue, {one.claims} themes")
    for column in ("estimate", *SHOWN):
        table.add_column(column)
    for estimator in one.estimators:
        cells = [_cell(estimator.figures[name]) for name in SHOWN]
        table.add_row(estimator.name, *cells)
    return table


def _risks(one: Comparison) -> Table:
    table = Table(title="Untrue themes among those kept, the least doubted first")
    for column in ("estimate", *RISKS):
        table.add_column(column)
    for estimator in one.estimators:
        if estimator.name in (OURS, FVE, CONSTANT):
            table.add_row(estimator.name, *(_cell(estimator.figures[name]) for name in RISKS))
    return table


def _fifths(found: Sequence[Comparison]) -> Table:
    table = Table(title="What P(unsupported) said and what was untrue, by fifths of the claims")
    table.add_column("claim")
    for number in range(BINS):
        table.add_column(str(number + 1))
    for one in found:
        said = (f"{estimate:.2f}: {untrue:.2f}" for estimate, untrue in one.fifths)
        table.add_row(one.type.value, *said)
    return table


def claims_of(found: Sequence[Comparison]) -> list[Claim]:
    """Bounds are on themes, which are what runs live; all else is reported."""
    claims: list[Claim] = []
    for one in found:
        is_theme = one.type is ClaimType.THEME
        for estimator in one.estimators:
            for name, measure in estimator.figures.items():
                held = is_theme and estimator.name == OURS
                said = f"{one.type.value}: {estimator.name}, {name}"
                claims.append(_claim(said, measure, BOUNDS.get(name) if held else None))
        above = Bound(0.0) if is_theme else None
        claims.append(_claim(f"{one.type.value}: AUROC ahead of FVE alone", one.ahead, above))
        claims.append(Claim(f"{one.type.value}: ECE if exact", one.ece_floor))
        claims.append(_claim(f"{one.type.value}: risk spared at half coverage", one.spared, above))
    return claims


def _claim(name: str, measure: Measure, bound: Bound | None) -> Claim:
    return Claim(name, measure.value, measure.low, measure.high, bound=bound)


def _cell(measure: Measure) -> str:
    return f"{measure.value:.3f} ({measure.low:.3f} to {measure.high:.3f})"
