"""Whether scores pooled over the last tokens find more conversations than a token's own score.

On the conversations of ``detection.py``, whose cache of replies and rows serves here as well
(``--cache``); nothing is decoded. For the directions that the pair ships and for means of labelled
rows: no pool, a moving average, the largest of the last tokens. How a conversation is scored, what
its threshold is and which families are reported is as in ``detection.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from detecting.conversations import MANY, QUICK, Sizes, choose, counts, kept
from detecting.decodes import identity
from detecting.pooled import Pooling, poolings
from detecting.work import Material, prepare
from detection import Setting, conversed, opened
from reporting.claims import Claim, Report
from reporting.machine import describe
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run
from rich.table import Table

from nae_monitor.models import resolve_nla
from nae_monitor.screen import read_directions
from nae_monitor.screen.directions import FILE_NAME
from nae_monitor.train.held_out import recipe_of

NOTES = (
    "TPR and AUROC: a logistic model of the largest score and the mean of the largest five",
    "scale: deviations of ordinary rows, or of what ordinary conversations of the fit part pool to",
    "gain: TPR less that without a pool on the same scale, the same conversations in each round",
)


def main(
    cache: Annotated[Path, typer.Option(help="Where replies and rows are kept.")] = (
        Path("build") / "detection"
    ),
    activations: Annotated[
        Path | None,
        typer.Option(help="The recipe's own collection (nla train), to learn directions from."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads, of one core each.")] = 2,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    quick: QuickOption = False,
    json_file: JsonOption = None,
) -> None:
    """Print what each way of pooling finds."""
    with clear_errors(json_file):
        torch.set_num_threads(1)
        machine = describe(seconds=0.2 if quick else 1.0)
        setting = Setting(cache, (), None, workers, seed, activations)
        material = _material(setting, quick)
        found = list(poolings(material))
        claims = [claim for one in found for claim in claims_of(one)]
        report = Report(machine, claims, {"conversations": counts(material.cases)})
        code = finish(report, [shown(found)], NOTES, json_file)
    raise typer.Exit(code)


def _material(setting: Setting, quick: bool) -> Material:
    recipe = recipe_of(resolve_nla(setting.av))
    sizes = QUICK if quick else Sizes()
    if setting.activations is not None:
        sizes = replace(sizes, directions=MANY)
    name = f"cases-{identity(repr(recipe), repr(sizes), str(setting.seed))}.json"
    cases = kept(setting.cache / name, lambda: choose(recipe, sizes, setting.seed))
    with progress() as report:
        cases, talks, _ = conversed(opened(recipe), cases, setting, report)
    return prepare(
        cases,
        talks,
        read_directions(resolve_nla(setting.ar) / FILE_NAME),
        base_model=recipe.target,
        layer=recipe.collect.layer,
        seed=setting.seed,
    )


def shown(found: Sequence[Pooling]) -> Table:
    """A line each."""
    table = Table(title="scores pooled over tokens, 95 % intervals by conversation")
    told = ("directions", "scale", "pool")
    for name in (*told, "TPR at 1 % FPR", "gain", "AUROC", "by the largest alone: TPR", "gain"):
        table.add_column(name, justify="left" if name in told else "right")
    for one in found:
        gain, more = ("" if g is None else str(g) for g in (one.gain, one.largest_gain))
        figures = (str(one.recall), gain, str(one.area), str(one.largest), more)
        table.add_row(one.choice, one.scale, str(one.pool or "none"), *figures)
    return table


def claims_of(one: Pooling) -> list[Claim]:
    """Figures alone: nothing was promised of pooling."""
    measured = {
        "TPR at 1 % FPR": one.recall,
        "AUROC": one.area,
        "TPR by the largest alone": one.largest,
        "gain in TPR": one.gain,
        "gain by the largest alone": one.largest_gain,
    }
    way = f"{one.choice}, {one.scale} scale, {one.pool or 'none'}"
    return [
        Claim(f"{way}: {name}", m.value, m.low, m.high)
        for name, m in measured.items()
        if m is not None
    ]


if __name__ == "__main__":
    run(main)
