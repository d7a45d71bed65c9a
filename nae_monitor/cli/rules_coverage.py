"""``rules coverage``: which risks the rules cover, and which rules are not kept up."""

from __future__ import annotations

import dataclasses
import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nae_monitor.cli import rules_options as options
from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.rules_corpus import samples_at
from nae_monitor.cli.terminal import json_line, output, printable

if TYPE_CHECKING:
    from nae_monitor.detect.tools.inventory import Inventory


def coverage(
    paths: options.PathsArgument = None,
    corpus: options.CorpusOption = None,
    strict: Annotated[bool, typer.Option(help="Exit 1 where a category has no rule, too.")] = False,
    models: options.ModelsOption = True,
    encoder: options.EncoderOption = options.DEFAULT_ENCODER,
    calibration: options.CalibrationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold the rules against the taxonomy of risks, and list what wants care.

    Untested rules and selections, expired exceptions, rules without a category and, with --corpus,
    rules that never fired in it. Exit code 1 where there is any.
    """
    from nae_monitor.detect import Judge
    from nae_monitor.detect.tools.backtest import backtest
    from nae_monitor.detect.tools.inventory import inventory

    chosen, model = options.rules_and_encoder(paths, None, models, encoder)
    fired = None
    if corpus:
        scale, pair = options.calibration_of(calibration)
        judge = Judge(chosen, model, calibration=scale)
        tallies = backtest(judge, samples_at(corpus, pair)).tallies
        fired = {name: tally.rate for name, tally in tallies.items()}
    today = datetime.datetime.now(datetime.UTC).date()
    found = inventory(chosen, model, today, fired)
    if as_json:
        json_line(_as_json(found))
    else:
        _print(found)
    if found.issues or (strict and found.uncovered):
        raise typer.Exit(1)


def _as_json(found: Inventory) -> dict[str, Any]:
    return {
        "categories": [dataclasses.asdict(category) for category in found.categories],
        "uncovered": [category.tag for category in found.uncovered],
        "issues": [dataclasses.asdict(issue) for issue in found.issues],
        "disabled": list(found.disabled),
    }


def _print(found: Inventory) -> None:
    from rich.table import Table

    console = output()
    table = Table("category", "tag", "rules", box=None, pad_edge=False)
    for category in found.categories:
        names = ", ".join(category.rules) or "NONE"
        style = "" if category.rules else "bold red"
        table.add_row(printable(category.title), printable(category.tag), names, style=style)
    console.print(table)
    total = len(found.categories)
    console.print(f"{total - len(found.uncovered)} of {total} categories have a rule")
    if found.disabled:
        console.print(f"disabled, covering nothing: {', '.join(found.disabled)}", soft_wrap=True)
    for issue in found.issues:
        kind = issue.kind.replace("_", " ")
        line = f"{kind}: {issue.rule_name}: {issue.message}"
        console.print(printable(line), soft_wrap=True)
    if not found.issues:
        console.print("every rule is tested, classified and in date")
