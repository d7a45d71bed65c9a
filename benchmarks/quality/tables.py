"""Measures as claims, as tables and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from reporting.claims import Claim, met, verdict
from rich.table import Table

from nae_monitor.train.evaluate import RETRIEVAL_SIZE
from nae_monitor.train.intervals import Measure
from nae_monitor.train.recipe import Recipe
from quality.bounds import ABOVE_LAST_TOKEN, KIND, LINES, OOD_FVE, RETRIEVAL, Line
from quality.measured import OOD, Measured


def claims_of(found: Measured) -> list[Claim]:
    """One claim a line; retrieval among fewer vectors than the bound is for is not claimed."""
    measures = dict(found.content)
    if found.foreign:
        measures[OOD_FVE] = found.foreign["round-trip FVE"]
    claims = [_claim(line, measures.get(line.measure)) for line in LINES]
    smaller = _small_retrieval(found.content)
    if smaller is None:
        return claims
    unclaimed = Claim(smaller.name, 100 * smaller.value, 100 * smaller.low, 100 * smaller.high, "%")
    return [unclaimed if c.name == RETRIEVAL else c for c in claims]


def _claim(line: Line, measure: Measure | None) -> Claim:
    if measure is None:
        return Claim(line.name, math.nan, unit=line.unit, bound=line.must)
    value, low, high = (line.scale * x for x in (measure.value, measure.low, measure.high))
    return Claim(line.name, value, low, high, line.unit, line.must)


def _small_retrieval(measures: Mapping[str, Measure]) -> Measure | None:
    """Retrieval among fewer vectors than it is meant to be, where there were no more."""
    found = (m for m in measures.values() if m.name.startswith("retrieval") and "top 1" in m.name)
    return next((m for m in found if m.name != RETRIEVAL), None)


def notes_of(found: Measured) -> list[str]:
    """What a reader of the table must know."""
    notes = [*found.notes]
    if _small_retrieval(found.content) is not None:
        notes.append(f"retrieval is claimed among {RETRIEVAL_SIZE} vectors; there were fewer rows")
    if ABOVE_LAST_TOKEN not in found.content:
        notes.append("the pair carries no means of last tokens, so that baseline is unknown")
    if KIND not in found.content:
        notes.append("no row's kind could be told by a reader, so themes were not judged")
    notes.append("value only: the value meets the bound, its interval reaches past it")
    notes.append("unique texts have no interval: draws with repeats would repeat texts")
    return notes


def quality_table(title: str, claims: Sequence[Claim], found: Measured) -> Table:
    """The claims with both bounds, and the values at template positions beside them."""
    table = Table(title=title)
    table.add_column("measure, content positions")
    for name in ("value", "95 % interval", "must reach", "holds", "aim", "template"):
        table.add_column(name, justify="right")
    for line, claim in zip(LINES, claims, strict=True):
        aim = line.aim if claim.bound else None
        reached = ", reached" if met(aim, claim.value) else ""
        beside = found.template.get(_template_name(line, found))
        table.add_row(
            f"{claim.name} ({claim.unit})" if claim.unit else claim.name,
            _number(claim.value),
            _interval(claim.low, claim.high),
            str(claim.bound or ""),
            verdict(claim),
            f"{aim or ''}{reached}",
            "" if beside is None else _number(line.scale * beside.value),
        )
    return table


def _template_name(line: Line, found: Measured) -> str:
    smaller = _small_retrieval(found.template)
    return smaller.name if line.measure == RETRIEVAL and smaller else line.measure


def control_table(found: Measured) -> Table:
    """Everything that was measured, with the controls that the figures must be read against."""
    table = Table(title="every figure and control, with 95 % intervals")
    table.add_column("measure")
    kinds = {"content": found.content, "template": found.template, OOD: found.foreign}
    for kind in kinds:
        table.add_column(kind, justify="right")
    for name in found.content:
        cells = (measures.get(name) for measures in kinds.values())
        table.add_row(name, *("" if m is None else _with_interval(m, 1.0) for m in cells))
    return table


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{_number(low)} to {_number(high)}"


def _with_interval(measure: Measure, scale: float) -> str:
    interval = _interval(scale * measure.low, scale * measure.high)
    value = _number(scale * measure.value)
    return f"{value} ({interval})" if interval else value


def context_of(found: Measured, recipe: Recipe, split: str) -> dict[str, Any]:
    """What the JSON holds beside the claims: every measure, and the aims."""
    parts = {"content": found.content, "template": found.template, OOD: found.foreign}
    return {
        "nla_id": recipe.nla_id,
        "split": split,
        **found.rows,
        "notes": notes_of(found),
        "aims": {line.name: str(line.aim) for line in LINES if line.aim},
        "measures": {kind: [_plain(m) for m in part.values()] for kind, part in parts.items()},
    }


def _plain(measure: Measure) -> dict[str, Any]:
    row = asdict(measure)
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
