"""How fast the trainer trains: examples/s, tokens/s and the share of the machine's matrix peak.

The claim is twice the 3.8 examples/s that a plain trial on two cores reached (44-token examples,
LoRA of rank 16 on every linear layer, batches of 24, SmolLM2-135M). The examples are made up, all
of that length, so no data need be collected. The trainer runs in bfloat16 where the machine
multiplies it natively and in float32 elsewhere; float32 is measured in any case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import typer
from reporting.claims import Bound, Claim, Report, verdict
from reporting.machine import Machine, describe, dtype_name
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run
from rich.table import Table
from speed.steps import Half, Variant, Work, example_flop, variants
from speed.windows import interleaved, median, ratio_over_plain

from nae_monitor.settings import TargetSettings
from nae_monitor.train.lora import LoraOptions
from nae_monitor.train.machine import keep_freed_memory

TRIAL_EXAMPLES_PER_S, TRIAL_TOKENS = 3.8, 44
CLAIM = Bound(2 * TRIAL_EXAMPLES_PER_S)
NOTES = (
    "trainer: as nla train runs; plain: default attention, torch's cross-entropy on every logit",
    "both keep freed memory as nla train does, which is set for a whole process",
    "at full peak: examples/s if every product ran at the measured peak and nothing else took time",
)
HALVES: tuple[Half, ...] = ("AV", "AR")


def bound_for(work: Work, at_least: float | None) -> Bound | None:
    """What is claimed: of another model or other examples only what the caller names."""
    if at_least is not None:
        return Bound(at_least)
    is_trial = (work.target, work.tokens) == (TargetSettings().model, TRIAL_TOKENS)
    return CLAIM if is_trial else None


def precisions(machine: Machine) -> tuple[torch.dtype, ...]:
    """What the trainer runs in on this machine first, then float32 where that is another."""
    return (torch.bfloat16, torch.float32) if machine.native_bfloat16 else (torch.float32,)


def claims_of(rates: Mapping[str, np.ndarray], claimed: str, bound: Bound | None) -> list[Claim]:
    """Examples/s of every variant, the bound on ``claimed``, then the paired ratios."""
    claims = [
        median(name, values, "examples/s", bound if name == claimed else None)
        for name, values in rates.items()
    ]
    pairs = dict.fromkeys(name.rpartition(", ")[0] for name in rates)
    return [*claims, *(ratio_over_plain(pair, rates) for pair in pairs)]


def speed_table(
    claims: Sequence[Claim], chosen: Sequence[Variant], shares: Sequence[float], work: Work
) -> Table:
    """One row a variant: speeds, share of the peak, what the peak itself would give."""
    table = Table(title=f"training steps, {work.tokens}-token examples, {work.target}")
    table.add_column("variant")
    columns = ("examples/s", "95 % interval", "tokens/s", "of peak", "at full peak", "must reach")
    for name in (*columns, "holds"):
        table.add_column(name, justify="right")
    for variant, claim, share in zip(chosen, claims, shares, strict=False):
        table.add_row(
            variant.name,
            f"{claim.value:.2f}",
            f"{claim.low:.2f} to {claim.high:.2f}",
            f"{claim.value * work.tokens:.0f}",
            f"{100 * share:.0f} %",
            f"{claim.value / share:.2f}",
            str(claim.bound or ""),
            verdict(claim) if claim.bound else "",
        )
    return table


def ratio_table(claims: Sequence[Claim]) -> Table:
    """How much the trainer's own ways gain."""
    table = Table(title="against plain peft, default attention and torch's cross-entropy")
    table.add_column("step")
    table.add_column("times as fast, median", justify="right")
    table.add_column("95 % interval", justify="right")
    for claim in claims:
        table.add_row(claim.name, f"{claim.value:.2f}", f"{claim.low:.2f} to {claim.high:.2f}")
    return table


def profile_table(variant: Variant, work: Work, rows: int = 12) -> Table:
    """Where the time of one step goes, operator by operator."""
    variant.prepare()
    with torch.profiler.profile() as profile:
        variant.step(np.arange(work.lora.batch_size), 0).backward()  # type: ignore[no-untyped-call]
    variant.model.zero_grad(set_to_none=True)
    found = sorted(profile.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total_us = sum(event.self_cpu_time_total for event in found)
    table = Table(title=f"one step of {variant.name}")
    table.add_column("operator")
    table.add_column("calls", justify="right")
    table.add_column("share of processor time", justify="right")
    for event in found[:rows]:
        share = event.self_cpu_time_total / total_us
        table.add_row(event.key, str(event.count), f"{100 * share:.1f} %")
    return table


def measure(
    work: Work,
    machine: Machine,
    *,
    rounds: int,
    steps: int,
    profile: bool,
    bound: Bound | None,
) -> tuple[Report, list[Table]]:
    """Time every variant in turn; the claim is on the first one.

    Raises:
        ModelError: the target cannot be loaded or serve as a pair's base.
        TrainingFailedError: a loss turned NaN.
    """
    dtypes = precisions(machine)
    chosen = [v for half in HALVES for dtype in dtypes for v in variants(half, work, dtype)]
    counted = {(v.half, v.dtype): example_flop(v, work) for v in chosen if v.way == "trainer"}
    with progress() as report:
        rates = interleaved(chosen, work, rounds=rounds, steps=steps, report=report)
    claims = claims_of(rates, chosen[0].name, bound)
    peaks = machine.matrix_peak_gflop_per_s
    shares = [
        claim.value * counted[v.half, v.dtype] / (1e9 * peaks[dtype_name(v.dtype)])
        for v, claim in zip(chosen, claims, strict=False)
    ]
    context: dict[str, Any] = {
        "target": work.target,
        "tokens_per_example": work.tokens,
        "batch_size": work.lora.batch_size,
        "lora_rank": work.lora.rank,
        "windows": rounds,
        "steps_per_window": steps,
        "gflop_per_example": {
            f"{half}, {dtype_name(dtype)}": flop / 1e9 for (half, dtype), flop in counted.items()
        },
        "share_of_matrix_peak": {v.name: share for v, share in zip(chosen, shares, strict=True)},
        "tokens_per_s": {v.name: work.tokens * float(np.median(rates[v.name])) for v in chosen},
    }
    tables = [speed_table(claims, chosen, shares, work), ratio_table(claims[len(chosen) :])]
    if profile:
        tables += [profile_table(v, work) for v in chosen if v.way == "trainer"]
    return Report(machine, claims, context), tables


def main(
    target: Annotated[str, typer.Option(help="Alias, directory or hub id.")] = (
        TargetSettings().model
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    layer: Annotated[int, typer.Option(min=1, help="Blocks of the reconstructor.")] = 20,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of an example.")] = TRIAL_TOKENS,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of a step.")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="Windows of each variant.")] = 9,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a window.")] = 2,
    at_least: Annotated[
        float | None, typer.Option(help="Examples/s that the verbalizer must reach.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time of a step goes.")
    ] = False,
    quick: QuickOption = False,
    json_file: JsonOption = None,
) -> None:
    """Time training steps; exit code 1 where the verbalizer's is slower than claimed."""
    with clear_errors(json_file):
        if device == "cpu":
            keep_freed_memory()  # as a run does; it holds for the whole process
        work = Work(target, device, tokens, layer, LoraOptions(rank=16, batch_size=batch_size))
        machine = describe(device, seconds=0.3 if quick else 1.0)
        report, tables = measure(
            work,
            machine,
            rounds=min(rounds, 3) if quick else rounds,
            steps=1 if quick else steps,
            profile=profile,
            bound=bound_for(work, at_least),
        )
        code = finish(report, tables, NOTES, json_file)
    raise typer.Exit(code)


if __name__ == "__main__":
    run(main)
