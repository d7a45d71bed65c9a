"""``nae-monitor nla train`` and ``nla evaluate``."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from nae_monitor.cli.terminal import errors, quiet_libraries
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV, EMBEDDED_ENCODER


def train(
    out: Annotated[Path, typer.Option(help="Directory of the run; an existing run resumes.")],
    target: Annotated[
        str | None, typer.Option(help="Directory, hub id or alias; default: the recipe's.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="auto (two thirds of the depth) or a number.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe file or a shipped name; default: by the device.")
    ] = None,
    stage: Annotated[
        str, typer.Option(help="all, or one of: collect, av, read, ar, expert, export.")
    ] = "all",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    time_limit_s: Annotated[
        float | None, typer.Option(help="Stop each training stage cleanly after this long.")
    ] = None,
) -> None:
    """Train an NLA pair stage by stage; every stage resumes where it was stopped."""
    from nae_monitor.train.display import Display
    from nae_monitor.train.plan import make_plan
    from nae_monitor.train.processes import is_first
    from nae_monitor.train.run import STAGES, Run

    quiet_libraries()
    plan = make_plan(out=out, target=target, layer=layer, recipe=recipe, device=device, stage=stage)
    console = errors() if is_first() else Console(quiet=True)
    console.print(
        f"{plan.recipe.nla_id}: layer {plan.recipe.collect.layer} of {plan.recipe.target}, "
        f"on {plan.device}"
    )
    with Display(console) as display:
        run = Run(plan.recipe, out, plan.device, time_limit_s, display.row, tick=display.tick)
        for name in STAGES:
            if stage in ("all", name):
                run.stage(name)
    if stage in ("all", "export"):
        console.print(f"pair written to {out / 'pair'}")


def evaluate(
    av: Annotated[str, typer.Option(help="Verbalizer: directory, hub id or embedded name.")] = (
        EMBEDDED_AV
    ),
    ar: Annotated[str, typer.Option(help="Reconstructor, likewise.")] = EMBEDDED_AR,
    documents: Annotated[int, typer.Option(help="Held-out documents to run the target on.")] = 160,
    rows: Annotated[int, typer.Option(help="Content positions to decode, at most.")] = 320,
    split: Annotated[str, typer.Option(help="test, validation or ood.")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a trained pair on held-out documents, with every control beside it."""
    from nae_monitor.models import load_encoder, resolve_nla, resolve_target
    from nae_monitor.train.evaluate import evaluate as measure
    from nae_monitor.train.evaluate import open_for_evaluation
    from nae_monitor.train.held_out import held_out_examples, recipe_of, rows_of

    quiet_libraries()
    av_dir, ar_dir = resolve_nla(av), resolve_nla(ar)
    pair = open_for_evaluation(av_dir, ar_dir, resolve_target)
    recipe = recipe_of(av_dir)
    encoder = load_encoder(EMBEDDED_ENCODER)
    with _progress() as progress:
        report = _reporter(progress)
        examples = held_out_examples(recipe, split, documents, report)
        found = {
            kind: measure(
                pair,
                rows_of(examples, content=kind == "content", limit=limit, seed=recipe.seed),
                encoder,
                seed=recipe.seed,
                progress=report,
            )
            for kind, limit in (("content", rows), ("template", max(32, rows // 4)))
        }
    if as_json:
        tables = {
            kind: [_plain(asdict(m)) for m in outcome.measures] for kind, outcome in found.items()
        }
        typer.echo(json.dumps({"nla_id": recipe.nla_id, "split": split, **tables}, indent=2))
        return
    console = Console()
    content = found["content"]
    table = Table(title=f"{recipe.nla_id}: {split} split, {documents} held-out documents")
    table.add_column("measure")
    table.add_column(f"content positions (n = {len(content.examples)})", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column(f"template positions (n = {len(found['template'].examples)})", justify="right")
    for main, beside in zip(content.measures, found["template"].measures, strict=True):
        interval = "" if math.isnan(main.low) else f"{main.low:.3f} to {main.high:.3f}"
        name = f"{main.name} ({main.unit})" if main.unit else main.name
        table.add_row(name, f"{main.value:.3f}", interval, f"{beside.value:.3f}")
    console.print(table)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors(),
        transient=True,
    )


def _reporter(progress: Progress) -> Any:
    tasks: dict[str, Any] = {}

    def report(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = progress.add_task(name, total=total)
        progress.update(tasks[name], completed=done, total=total)

    return report
