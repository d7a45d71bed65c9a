"""What the screen tells apart before anything is decoded, and what it costs a step.

Directions compiled from the rules' words by the reconstructor (no labels), from the means and
from probes of labelled rows, and random ones: each calibrated on ordinary documents that it was
not fitted on, its threshold chosen there, its figures reported on the test split, whose
near-duplicate families are in no other, and on a source that was never trained on. A document
scores what its best of at most five rows does.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import torch
import typer
from reporting.claims import Bound, Claim, Report
from reporting.machine import describe
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run
from rich.table import Table
from speed.windows import median

from nae_monitor.concepts import (
    Backend,
    LabelledRows,
    Measured,
    Ordinary,
    Whitening,
    build,
    concepts_of,
    directions_of,
    evaluate,
    frames_of,
    read_collection,
    reconstruct_by,
)
from nae_monitor.decode import Nla, load_nla
from nae_monitor.detect import load_rules
from nae_monitor.detect.sources import builtin_rules_directory
from nae_monitor.models import load_target, resolve_nla, resolve_target
from nae_monitor.records import Phase, Request, RowBatch
from nae_monitor.screen import Directions, Pool, ScoredScreen
from nae_monitor.screen.directions import calibrated, with_anomaly
from nae_monitor.settings import NlaSettings, ScreenSettings

BACKENDS: tuple[Backend, ...] = get_args(Backend)
PACKS = ("harm", "jailbreak", "injection")
COST_DIRECTIONS, COST_BOUND_PERCENT = 256, 0.3
COST_AXES = 32
BATCH = 8
NOTES = (
    "recall and false positives at the threshold that lets 1 % of ordinary training documents pass",
    "ar reads the rules' exemplars and titles alone; contrast and probe see labelled rows",
    "cost: scores of one row a sequence and the choice, beside one decode step of the target",
)


def main(
    activations: Annotated[
        Path, typer.Option(help="The activations folder of an `nla train` run of the recipe.")
    ] = Path("runs/embedded/activations"),
    frames: Annotated[int, typer.Option(min=1, help="Explanations that ar builds on.")] = 40,
    quick: QuickOption = False,
    json_file: JsonOption = None,
) -> None:
    """Print what each back-end tells apart and what screening costs."""
    with clear_errors(json_file):
        machine = describe(seconds=0.2 if quick else 1.0)
        with progress() as report:
            report("step", 0, 1)
            claims = cost(rounds=3 if quick else 9, steps=8 if quick else 24)
            report("step", 1, 1)
        tables = []
        if activations.is_dir():
            found = separation(activations, 8 if quick else frames)
            tables.append(shown(found))
            claims += [claim for name, m in found.items() for claim in claims_of(name, m)]
        else:
            typer.echo(f"{activations}: no collection, so only the cost is measured", err=True)
        code = finish(Report(machine, claims, {}), [*tables, cost_table(claims)], NOTES, json_file)
    raise typer.Exit(code)


def separation(activations: Path, frames: int) -> dict[str, Measured]:
    """Figures of every back-end on the test split and the foreign source."""
    train, test, foreign = (
        read_collection(activations, splits) for splits in (["train"], ["test"], ["ood"])
    )
    ordinary = Ordinary.of(train)
    whitening = Whitening.of(ordinary.fit)
    nla = load_nla(
        *(resolve_nla(name) for name in (NlaSettings().av, NlaSettings().ar)),
        settings=NlaSettings(batch_size=16),
        resolve_base=resolve_target,
    )
    rules = load_rules([str(builtin_rules_directory() / pack) for pack in PACKS])
    words = {
        "concepts": concepts_of(rules),
        "frames": frames_of(nla, ordinary.fit, frames),
        "reconstruct": reconstruct_by(nla),
    }
    return {
        backend: evaluate(
            _directions(backend, train, ordinary, whitening, words, nla),
            ordinary.scale,
            test,
            foreign,
        )
        for backend in BACKENDS
    }


def _directions(
    backend: Backend,
    train: LabelledRows,
    ordinary: Ordinary,
    whitening: Whitening,
    words: dict[str, object],
    nla: Nla,
) -> Directions:
    built = build(backend, train, whitening, **words)  # type: ignore[arg-type]
    return directions_of(
        built, ordinary.scale, base_model="smollm2-135m-instruct", layer=nla.layer, provenance={}
    )


def shown(found: dict[str, Measured]) -> Table:
    table = Table(title="hostile against ordinary documents, 95 % intervals by document")
    for name in ("directions", "AUROC", "recall", "false positives", "of a foreign source"):
        table.add_column(name, justify="left" if name == "directions" else "right")
    for name, m in found.items():
        foreign = str(m.foreign_false_positives or "")
        table.add_row(name, str(m.auroc), str(m.recall), str(m.false_positives), foreign)
    return table


def claims_of(name: str, m: Measured) -> list[Claim]:
    beats_chance = Bound(0.6) if name != "random" else None
    return [
        Claim(f"{name}: AUROC", m.auroc.value, m.auroc.low, m.auroc.high, "", beats_chance),
        Claim(f"{name}: recall", m.recall.value, m.recall.low, m.recall.high),
    ]


def cost(rounds: int, steps: int) -> list[Claim]:
    """Milliseconds of a decode step of the target without a monitor, and of screening its rows."""
    target = load_target("smollm2-135m-instruct")
    d_model = target.model.config.hidden_size
    plain, full = _screen(d_model), _screen(d_model, Pool("ema", 8), COST_AXES)
    taken: dict[str, list[float]] = {"step": [], "screen": [], "full": []}
    ids = torch.zeros(BATCH, 128, dtype=torch.long)
    with torch.inference_mode():
        out = target.model(ids, use_cache=True)
        for _ in range(rounds):
            taken["step"].append(_step_ms(target.model, out.past_key_values, steps))
            taken["screen"].append(_screen_ms(plain, d_model, steps))
            taken["full"].append(_screen_ms(full, d_model, steps))
    step, screened, whole = (np.asarray(taken[name]) for name in ("step", "screen", "full"))
    at_most = Bound(COST_BOUND_PERCENT, at_most=True)
    return [
        median(f"decode step, batch {BATCH}", step, "ms"),
        median(f"screening its rows, {COST_DIRECTIONS} directions", screened, "ms"),
        median(f"the same, pooled and with anomalies in {COST_AXES} axes", whole, "ms"),
        median("screening of a step", 100 * screened / step, "%", at_most),
        median("screening of a step, pooled and with anomalies", 100 * whole / step, "%", at_most),
    ]


def _screen(d_model: int, pool: Pool | None = None, axes: int = 0) -> ScoredScreen:
    random = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(4_000, d_model, generator=random), dim=1)
    is_prompt = torch.arange(4_000) % 2 == 0
    directions = calibrated(
        [f"d{n}" for n in range(COST_DIRECTIONS)],
        torch.randn(COST_DIRECTIONS, d_model, generator=random),
        rows,
        is_prompt,
        base_model="m",
        layer=20,
        provenance={},
        pool=pool,
        runs=np.zeros(4_000, dtype=np.int64),
    )
    if axes:
        directions = with_anomaly(directions, rows, rows, is_prompt, axes)
    return ScoredScreen(ScreenSettings(), directions)


def _step_ms(model: torch.nn.Module, cache: object, steps: int) -> float:
    started_s = time.perf_counter()
    for _ in range(steps):
        model(torch.zeros(BATCH, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
    return 1e3 * (time.perf_counter() - started_s) / steps


def _screen_ms(screen: ScoredScreen, d_model: int, steps: int) -> float:
    requests = tuple(Request(f"r{n}", f"r{n}", "m") for n in range(BATCH))
    batch = RowBatch(
        requests=requests,
        request_index=tuple(range(BATCH)),
        positions=(9,) * BATCH,
        token_ids=(1,) * BATCH,
        phases=(Phase.COMPLETION,) * BATCH,
        layer=20,
        vectors=torch.randn(BATCH, d_model),
    )
    batches = [
        replace(batch, positions=(9 + step,) * BATCH, vectors=torch.randn(BATCH, d_model))
        for step in range(steps)
    ]
    started_s = time.perf_counter()
    for batch in batches:
        screen.choose(batch)
    return 1e3 * (time.perf_counter() - started_s) / steps


def cost_table(claims: list[Claim]) -> Table:
    table = Table(title="cost of screening")
    for name in ("measure", "value", "95 % interval", "must reach", "holds"):
        table.add_column(name)
    for c in claims:
        if c.unit:
            bound = str(c.bound or "")
            interval = f"{c.low:.3g} to {c.high:.3g}"
            table.add_row(c.name, f"{c.value:.3g} {c.unit}", interval, bound, str(c.holds or ""))
    return table


if __name__ == "__main__":
    run(main)
