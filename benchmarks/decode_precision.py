"""What smaller weights and larger batches on the CPU give and cost, embedded pair.

The verbalizer greedily decodes activations of held-out messages with its weights in float32, in
bfloat16 (where the processor multiplies it natively) and as 8-bit integers, as ``nla.cpu_weights``
has them, all in turn in each round; texts are compared with those of float32, and every text is
scored by the same reconstructor in float32. Then the reconstructor reads some of those texts alone
and in batches. No round begins after ``--limit-s``, so the whole takes little longer than that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

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
from nae_monitor.decode.engines.quantised import lacking
from nae_monitor.decode.engines.torch_engine import TorchEngine
from nae_monitor.decode.fidelity import measure
from nae_monitor.decode.merged import write_merged_av
from nae_monitor.decode.prompts import PromptBatch, PromptBuilder, Sampling, parse_explanation
from nae_monitor.decode.reconstructor import Reconstructor, load_reconstructor
from nae_monitor.models import resolve_nla, resolve_target
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV
from nae_monitor.train.intervals import Clusters
from nae_monitor.train.lora import has_fast_bfloat16

MAX_NEW_TOKENS, BATCH = 64, 128
FULL, HALF, INT8 = "float32", "bfloat16", "int8"
AR_BATCHES, AR_TEXTS = (1, 16, 64), 64
MAX_AR_DIFFERENCE = Bound(1e-4, at_most=True)
MIN_SPEED = {INT8: Bound(1.1)}  # less would not be worth other texts
MAX_FVE_LOST = {INT8: Bound(0.02, at_most=True)}
NOTES = (
    "weights of the verbalizer only; the reconstructor is float32 throughout",
    "int8: weights of the blocks with a scale an output, their inputs with a scale a row; "
    "embeddings, norms and the language-model head stay in float32",
    "bfloat16 and int8 round differently from float32 at each step, so greedy texts part where two "
    "tokens are nearly as likely",
    "FVE lost: of the same vectors, intervals by a bootstrap over messages",
)
Progress = Callable[[str, int, int], None]


def engines(folder: Path) -> tuple[dict[str, TorchEngine], PromptBuilder]:
    """The verbalizer in each precision, and what makes its prompts."""
    checkpoint = open_av(resolve_nla(EMBEDDED_AV), resolve_target)
    merged = write_merged_av(checkpoint, folder / "av", dtype=torch.float32)

    def engine(dtype: torch.dtype, *, is_int8: bool = False) -> TorchEngine:
        model = AutoModelForCausalLM.from_pretrained(merged, dtype=dtype).eval()
        return TorchEngine(
            model, checkpoint.tokenizer, batch_size=BATCH, is_frozen=True, is_int8=is_int8
        )

    made = {FULL: engine(torch.float32)}
    if lacking() is None:
        made[INT8] = engine(torch.float32, is_int8=True)
    if has_fast_bfloat16(torch.device("cpu")):
        made[HALF] = engine(torch.bfloat16)
    return made, PromptBuilder(checkpoint, made[FULL].prompt_rows(checkpoint.prompt_ids))


def decoded(
    made: dict[str, TorchEngine],
    prompts: PromptBatch,
    rounds: int,
    limit_s: float,
    report: Progress,
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Texts/s [rounds, at least one] and the texts of each precision."""
    names = list(made)
    taken: dict[str, list[float]] = {name: [] for name in names}
    texts: dict[str, list[str]] = {}
    began_s = time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - began_s > limit_s:
            break
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            started_s = time.perf_counter()
            found = made[name].generate(prompts, Sampling(MAX_NEW_TOKENS))
            taken[name].append(len(found) / (time.perf_counter() - started_s))
            texts[name] = [parse_explanation(one.text)[0] for one in found]
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
    for name in [name for name in rates if name != FULL]:
        claims.append(median(f"verbalizer in {name}", rates[name], "texts/s"))
        gained, bound = rates[name] / rates[FULL], MIN_SPEED.get(name)
        claims.append(median(f"{name}: speed over {FULL}", gained, "x", bound))
        for label, values, bound in (
            (f"{name}: identical texts, share", same[name], None),
            (f"{name}: FVE lost, mean", fve[FULL] - fve[name], MAX_FVE_LOST.get(name)),
        ):
            found = clusters.mean(label, values)
            claims.append(Claim(found.name, found.value, found.low, found.high, bound=bound))
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
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    limit_s: Annotated[float, typer.Option(help="No round of decoding begins later.")] = 300.0,
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
        rates, texts = decoded(made, builder.build(vectors), rounds, limit_s, report)
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
        claims += batch_claims(*scored(reader, texts[FULL][:AR_TEXTS], min(rounds, 3), report))
    missing = lacking()
    notes = NOTES if missing is None else (*NOTES, f"int8 was not measured: {missing}")
    code = finish(Report(machine, claims), [table_of(claims, len(names))], notes, json_file)
    raise typer.Exit(code)


if __name__ == "__main__":
    run(main)
