"""How well a pair reads: the table that a release of the embedded pair must pass, for any pair.

Content positions of held-out documents are judged; template positions stand beside them and are
never mixed in. Intervals are 95 %, by a bootstrap that draws whole documents. A bound is compared
with the value; where the interval reaches past it, the table says so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from quality.measured import Measured, Size, measure_pair, recipe_for
from quality.tables import claims_of, context_of, control_table, notes_of, quality_table
from reporting.claims import Report
from reporting.machine import Machine, describe
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run

from nae_monitor.models import load_encoder, resolve_nla, resolve_target
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV, EMBEDDED_ENCODER
from nae_monitor.train.evaluate import open_for_evaluation
from nae_monitor.train.recipe import Recipe

QUICK_DOCUMENTS, QUICK_ROWS = 24, 48


def main(
    av: Annotated[str, typer.Option(help="Verbalizer: directory, hub id or embedded name.")] = (
        EMBEDDED_AV
    ),
    ar: Annotated[str, typer.Option(help="Reconstructor, likewise.")] = EMBEDDED_AR,
    documents: Annotated[int, typer.Option(min=1, help="Held-out documents to run.")] = 160,
    rows: Annotated[int, typer.Option(min=1, help="Content positions to decode, at most.")] = 320,
    split: Annotated[str, typer.Option(help="test, validation or ood.")] = "test",
    recipe: Annotated[
        str | None, typer.Option(help="For a pair without training record: what to hold out.")
    ] = None,
    quick: QuickOption = False,
    json_file: JsonOption = None,
) -> None:
    """Print the quality table of a pair; exit code 1 where it does not reach what it must."""
    with clear_errors(json_file):
        size = Size(documents, rows)
        if quick:
            size = Size(min(documents, QUICK_DOCUMENTS), min(rows, QUICK_ROWS))
        av_dir, ar_dir = resolve_nla(av), resolve_nla(ar)
        machine = describe(seconds=0.2 if quick else 1.0)
        pair = open_for_evaluation(av_dir, ar_dir, resolve_target)
        used, warning = recipe_for(pair, av_dir, ar_dir, recipe)
        encoder = load_encoder(EMBEDDED_ENCODER)
        with progress() as report:
            found = measure_pair(pair, used, encoder, split, size, report)
        if warning:
            found = replace(found, notes=(warning, *found.notes))
        code = show(found, used, split, machine, json_file)
    raise typer.Exit(code)


def show(
    found: Measured, recipe: Recipe, split: str, machine: Machine, json_file: Path | None
) -> int:
    """Print tables and notes, write the JSON, and return the exit code."""
    claims = claims_of(found)
    title = (
        f"{recipe.nla_id}, {split} split: {found.rows['content_rows']} positions of "
        f"{found.rows['content_documents']} documents"
    )
    report = Report(machine, claims, context_of(found, recipe, split))
    tables = [quality_table(title, claims, found), control_table(found)]
    return finish(report, tables, notes_of(found), json_file)


if __name__ == "__main__":
    run(main)
