"""What smaller weights and larger batches on the CPU give and cost, embedded pair.

The verbalizer greedily decodes activations of held-out messages with its weights in float32, in
bfloat16 and as 8-bit integers (dynamic quantisation of every linear layer, torch's own), all in
turn in each round; texts are compared with those of float32, and every text is scored by the same
reconstructor in float32. Then the reconstructor reads those texts alone and in batches.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from recording_precision import vectors_of
from reporting.claims import Bound, Claim, Report, verdict
from reporting.machine import describe
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run
from rich.table import Table
from speed.windows import median
from transformers import AutoModelForCausalLM

from nae_monitor.decode.checkpoint import open_ar, open_av
from nae_monitor.decode.engines.torch_engine import TorchEngine
from nae_monitor.decode.fidelity import measure
from nae_monitor.decode.merged import write_merged_av
from nae_monitor.decode.prompts import PromptBatch, PromptBuilder, Sampling
from nae_monitor.decode.reconstructor import Reconstructor, load_reconstructor
from nae_monitor.models import resolve_nla, resolve_target
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV
from nae_monitor.train.intervals import Clusters

MAX_NEW_TOKENS, BATCH = 64, 64
FULL, HALF, INT8 = "float32", "bfloat16", "int8"
AR_BATCHES = (1, 16, 64)
MAX_AR_DIFFERENCE = Bound(1e-4, at_most=True)
NOTES = (
    "weights of the verbalizer only; the reconstructor is float32 throughout",
    "bfloat16 and int8 round differently from float32 at each step, so greedy texts part where two "
    "tokens are nearly as likely",
    "FVE lost: of the same vectors, intervals by a bootstrap over messages",
)
Progress = Callable[[str, int, int], None]


def engines(folder: Path) -> tuple[dict[str, TorchEngine], PromptBuilder]:
    """The verbalizer in each precision, and what makes its prompts."""
    checkpoint = open_av(resolve_nla(EMBEDDED_AV), resolve_target)
    merged = write_merged_av(checkpoint, folder / "av", dtype=torch.float32)

    def model(dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(merged, dtype=dtype).eval()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        small = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            model(torch.float32), {torch.nn.Linear}, torch.qint8
        )
    made = {
        FULL: TorchEngine(
            model(torch.float32), checkpoint.tokenizer, batch_size=BATCH, is_frozen=True
        ),
        HALF: TorchEngine(
            model(torch.bfloat16), checkpoint.tokenizer, batch_size=BATCH, is_frozen=True
        ),
        INT8: TorchEngine(small, checkpoint.tokenizer, batch_size=BATCH, is_frozen=False),
    }
    return made, PromptBuilder(checkpoint, made[FULL].prompt_rows(checkpoint.prompt_ids))


def decoded(
    made: dict[str, TorchEngine], prompts: PromptBatch, rounds: int, report: Progress
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Texts/s [rounds] and the texts of each precision."""
    names = list(made)
    taken: dict[str, list[float]] = {name: [] for name in names}
    texts: dict[str, list[str]] = {}
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            started_s = time.perf_counter()
            found = made[name].generate(prompts, Sampling(MAX_NEW_TOKENS))
            taken[name].append(len(found) / (time.perf_counter() - started_s))
            texts[name] = [one.text for one in found]
        report("decode", number + 1, rounds)
    return {name: np.array(values) for name, values in taken.items()}, texts


def scored(
    reader: Reconstructor, texts: list[str], rounds: int, report: Progress
) -> tuple[dict[int, np.ndarray], dict[int, torch.Tensor]]:
    """Texts/s [rounds] of the reconstructor by batch size, and its vectors."""
    taken: dict[int, list[float]] = {size: [] for size in AR_BATCHES}
    rebuilt: dict[int, torch.Tensor] = {}
    for number in range(rounds):
        for size in AR_BATCHES:
            reader._batch_size = size
            started_s = time.perf_counter()
            rebuilt[size] = reader.reconstruct(texts)
            taken[size].append(len(texts) / (time.perf_counter() - started_s))
        report("score", number + 1, rounds)
    return {size: np.array(values) for size, values in taken.items()}, rebuilt


def precision_claims(
    rates: dict[str, np.ndarray], same: dict[str, np.ndarray], fve: dict[str, np.ndarray],
    clusters: Clusters,
) -> list[Claim]:  # fmt: skip
    """Speed over float32, identical texts, and FVE lost."""
    claims = [median(f"verbalizer in {FULL}", rates[FULL], "texts/s")]
    mean = clusters.mean(f"{FULL}: FVE, mean", fve[FULL])
    claims.append(Claim(mean.name, mean.value, mean.low, mean.high))
    for name in (HALF, INT8):
        claims.append(median(f"{name}: speed over {FULL}", rates[name] / rates[FULL], "x"))
        for label, values in (
            (f"{name}: identical texts, share", same[name]),
            (f"{name}: FVE lost, mean", fve[FULL] - fve[name]),
        ):
            found = clusters.mean(label, values)
            claims.append(Claim(found.name, found.value, found.low, found.high))
    return claims


def batch_claims(rates: dict[int, np.ndarray], rebuilt: dict[int, torch.Tensor]) -> list[Claim]:
    """Speed of larger batches of the reconstructor, and how far their vectors are from single."""
    claims = [median("reconstructor, one text at a time", rates[1], "texts/s")]
    for size in AR_BATCHES[1:]:
        claims.append(median(f"reconstructor, {size} at once: speed", rates[size] / rates[1], "x"))
        gap = (rebuilt[size] - rebuilt[1]).norm(dim=-1) / rebuilt[1].norm(dim=-1)
        worst = float(gap[torch.isfinite(gap)].max())
        name = f"reconstructor, {size} at once: largest difference, share of length"
        claims.append(Claim(name, worst, bound=MAX_AR_DIFFERENCE))
    return claims


def table_of(claims: list[Claim], rows: int) -> Table:
    """One row a claim."""
    table = Table(title=f"weights and batches on the CPU, {rows} vectors")
    table.add_column("measure")
    for name in ("value", "95 % interval", "must reach", "holds"):
        table.add_column(name, justify="right")
    for claim in claims:
        span = f"{claim.low:.4g} to {claim.high:.4g}" if np.isfinite(claim.low) else ""
        value = f"{claim.value:.4g} {claim.unit}".strip()
        table.add_row(claim.name, value, span, str(claim.bound or ""), verdict(claim))
    return table


def main(
    messages: Annotated[int, typer.Option(min=1, help="Held-out messages.")] = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    seed: Annotated[int, typer.Option(help="Which messages, and of the bootstrap.")] = 0,
    quick: QuickOption = False,
    json_file: JsonOption = None,
) -> None:
    """Compare precisions and batch sizes; exit code 1 where a claim does not hold."""
    with clear_errors(json_file), TemporaryDirectory() as folder, progress() as report:
        torch.set_num_threads(threads)
        machine = describe(seconds=0.2 if quick else 1.0)
        messages, rounds = (8, 1) if quick else (messages, rounds)
        vectors, names, _ = vectors_of(messages, seed)
        made, builder = engines(Path(folder))
        rates, texts = decoded(made, builder.build(vectors), rounds, report)
        checkpoint = open_ar(resolve_nla(EMBEDDED_AR), resolve_target)
        reader = load_reconstructor(
            checkpoint, batch_size=1, dtype=torch.float32, device=torch.device("cpu")
        )
        fve = {
            name: np.array(
                [
                    measure(h, row, checkpoint.reference).fve or 0.0
                    for h, row in zip(vectors, reader.reconstruct(found), strict=True)
                ]
            )
            for name, found in texts.items()
        }
        same = {
            name: np.array([a == b for a, b in zip(found, texts[FULL], strict=True)], float)
            for name, found in texts.items()
        }
        clusters = Clusters.by_document(names, seed)
        claims = precision_claims(rates, same, fve, clusters)
        claims += batch_claims(*scored(reader, texts[FULL], rounds, report))
    code = finish(Report(machine, claims), [table_of(claims, len(names))], NOTES, json_file)
    raise typer.Exit(code)


if __name__ == "__main__":
    run(main)
