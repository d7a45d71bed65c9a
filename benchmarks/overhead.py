"""What the monitor costs the process that serves, under transformers.

SmolLM2, prompts of 128 tokens and as many new ones, one sequence and eight. Every way of serving is
timed in pairs with a generation without a monitor right beside it, and what is reported is the
median of the pairs' ratios. Decoding is no part of it: rows leave for a worker process that answers
at once, or none are bought.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from reporting.claims import Bound, Claim, Report, verdict
from reporting.machine import describe
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run
from rich.table import Table
from serving_cost.profile import TOTAL, profile
from serving_cost.rounds import (
    Pair,
    first_token,
    in_pairs,
    peak_mib,
    prompts,
    rate,
    slow_gaps,
    timed,
    window_rate,
)
from serving_cost.variants import (
    BASE,
    HIDDEN,
    HOOK,
    IPC,
    IPC_HALF,
    NNSIGHT,
    OFF,
    ON_A_COPY,
    SCREEN,
    Bench,
    Variant,
    patches,
)

BATCHES = (1, 8)
WAYS = (OFF, SCREEN, IPC, IPC_HALF, HIDDEN, HOOK, NNSIGHT)
OWN = (OFF, SCREEN, IPC)
CLAIMED = (SCREEN, IPC)
RATE, RATE_LOW, LATER, STEP_US = 0.99, 0.98, 1.02, 200.0
NOTES = (
    "ratios: no monitor = 1; tokens/s the higher the better, the other two the lower",
    "tokens/s: of the median window of eight tokens; whole generations: median of the pairs",
    "ipc: rows are bought as by default (4 a second, 16 a request) and leave for a worker process",
    "half of all rows leave: what no budget allows, to see what a row costs on its way",
    "memory: the most this process held, above the same without the variant, at the largest batch",
    "microseconds: means, with caches that the model's weights have emptied between steps; rows of "
    "eight steps go through listener and screen together",
)
QUICK_NOTE = (
    "--quick: one sequence and too few tokens for a claim about time; only what is patched is "
    "held to its bound"
)


def main(
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    rounds: Annotated[int, typer.Option(min=2, help="Pairs of each variant and batch.")] = 15,
    peers: Annotated[bool, typer.Option(help="Measure other ways to get at the rows, too.")] = True,
    quick: QuickOption = False,
    json_file: JsonOption = None,
) -> None:
    """Print tokens/s, latencies, memory and microseconds a step, beside no monitor."""
    torch.set_num_threads(threads)
    rounds, new_tokens = (2, 6) if quick else (rounds, 128)
    batches = BATCHES[:1] if quick else BATCHES
    with clear_errors(json_file):
        machine = describe(seconds=0.2 if quick else 1.0)
        with (
            tempfile.TemporaryDirectory(prefix="nae-") as place,
            Bench(Path(place)) as bench,
            progress() as report,
        ):
            base = bench.open(BASE)
            variants, memory, missing = opened(
                bench, base, WAYS if peers else OWN, max(batches), new_tokens
            )
            patched = len(patches(bench.target.model))
            claims = [Claim("patched while off", patched, bound=Bound(0, at_most=True))]
            for batch in batches:
                pairs = in_pairs(base, variants, batch, new_tokens, rounds, report)
                for name, found in pairs.items():
                    claims += claims_of(name, batch, found)
            steps = {
                batch: profile(bench, one, prompts(batch), max(new_tokens, 16))
                for batch in batches
                for one in variants
                if one.name == IPC
            }
            claims += [step_claim(batch, found) for batch, found in steps.items()]
            counted = {
                name: dict(monitor.health.counters()) for name, monitor in bench.monitors.items()
            }
        if quick:
            claims = [claims[0], *(replace(claim, bound=None) for claim in claims[1:])]
        result = Report(machine, claims, {"steps_us": steps, "mib": memory, "counters": counted})
        notes = [*NOTES, *missing, *([QUICK_NOTE] if quick else [])]
        tables = [ratios(claims), memory_table(memory), parts_table(steps)]
        code = finish(result, tables, notes, json_file)
    raise typer.Exit(code)


def opened(
    bench: Bench, base: Variant, ways: Sequence[str], batch: int, new_tokens: int
) -> tuple[list[Variant], dict[str, float], list[str]]:
    """Every variant that can be had, the memory that each adds in MiB, and what is missing."""
    variants: list[Variant] = []
    memory: dict[str, float] = {}
    missing: list[str] = []
    ids = prompts(batch)
    timed(base, ids, new_tokens)
    for name in ways:
        before = peak_mib(partial(timed, base, ids, new_tokens))
        try:
            variant = bench.open(name)
        except ImportError:
            missing.append(f"{name} is not installed and left out")
            continue
        if name in ON_A_COPY:  # the copy of the model is ours, not theirs
            before = peak_mib(partial(timed, base, ids, new_tokens))
        timed(variant, ids, new_tokens)
        held = peak_mib(partial(timed, variant, ids, new_tokens))
        variants.append(variant)
        if before is not None and held is not None:
            memory[name] = max(0.0, held - before)
    return variants, memory, missing


def claims_of(name: str, batch: int, pairs: Sequence[Pair]) -> list[Claim]:
    """Tokens/s, time to the first token and slow gaps of one variant."""
    claimed = name in CLAIMED
    label = f"{name}, batch {batch}"
    found = [rate(f"{label}: tokens/s, whole generations", pairs, None)]
    if len(pairs[0].variant.gaps):
        speed = window_rate(f"{label}: tokens/s", pairs, Bound(RATE) if claimed else None)
        found.append(speed)
        if claimed:
            low = Claim(f"{label}: tokens/s, low end", speed.low, unit="x", bound=Bound(RATE_LOW))
            found.append(low)
        late = Bound(LATER, at_most=True) if claimed else None
        found.append(first_token(f"{label}: time to first token", pairs, late))
        found.append(slow_gaps(f"{label}: p99 between tokens", pairs, late))
    return found


def step_claim(batch: int, found: Mapping[str, float]) -> Claim:
    """The microseconds that one decode step pays."""
    bound = Bound(STEP_US, at_most=True) if batch == 1 else None
    return Claim(f"{IPC}, batch {batch}: own code a step", found[TOTAL], unit="us", bound=bound)


def ratios(claims: Sequence[Claim]) -> Table:
    table = Table(title="Beside no monitor")
    for column in ("", "value", "95 % interval", "must reach", "holds"):
        table.add_column(column, justify="left" if not column else "right")
    for claim in claims:
        interval = f"{claim.low:.3f} to {claim.high:.3f}" if claim.low == claim.low else ""
        value = f"{claim.value:.3f} {claim.unit}"
        table.add_row(claim.name, value, interval, str(claim.bound or ""), verdict(claim))
    return table


def memory_table(memory: Mapping[str, float]) -> Table:
    table = Table(title="Memory added")
    table.add_column("")
    table.add_column("MiB", justify="right")
    for name, mib in memory.items():
        table.add_row(name, f"{mib:.1f}")
    return table


def parts_table(steps: Mapping[int, Mapping[str, float]]) -> Table:
    table = Table(title=f"Microseconds: in all a decode step, the parts a call ({IPC})")
    table.add_column("")
    for batch in steps:
        table.add_column(f"batch {batch}", justify="right")
    for name in next(iter(steps.values()), {}):
        table.add_row(name, *(f"{found[name]:.0f}" for found in steps.values()))
    return table


if __name__ == "__main__":
    run(main)
