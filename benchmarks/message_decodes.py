"""Decodes of the recipe's messages, for ``nae-monitor rules backtest --corpus``.

How often a rule matches where nothing hostile was said is its benign false-positive rate: that of
the ordinary messages in the splits that the pair was not trained on, its foreign source included.
``--hostile`` takes the others, which is what a rule gives up by matching less; ``--split train``
the messages to choose thresholds on. Each message gives a few content positions of its own and of
the target's reply. The file holds prompts and decoded texts: treat it as they are treated.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from reporting.script import QuickOption, clear_errors, progress, run

from nae_monitor.cli.terminal import output
from nae_monitor.decode.fidelity import measure
from nae_monitor.errors import InputDataError
from nae_monitor.models import load_target, resolve_nla, resolve_target
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV
from nae_monitor.train.collect import collect
from nae_monitor.train.corpus import TrainingDocument
from nae_monitor.train.evaluate import Pair, open_for_evaluation
from nae_monitor.train.held_out import recipe_of
from nae_monitor.train.lora import has_fast_bfloat16
from nae_monitor.train.recipe import Recipe
from nae_monitor.train.shards import read_shard
from nae_monitor.train.splits import Wheels, split_corpus
from nae_monitor.train.themes import KINDS, theme_of
from nae_monitor.train.wheels import corpus_wheels

HELD_OUT = ("test", "validation", "ood")
DECODE_BATCH = 128
QUICK_MESSAGES = 24
OUT = Path("build") / "message_decodes.jsonl"


def main(
    out: Annotated[Path, typer.Argument(help="JSON Lines file to write.")] = OUT,
    av: Annotated[str, typer.Option(help="Verbalizer: directory or embedded name.")] = EMBEDDED_AV,
    ar: Annotated[str, typer.Option(help="Reconstructor, likewise.")] = EMBEDDED_AR,
    messages: Annotated[int, typer.Option(min=1, help="At most so many.")] = 10_000,
    positions: Annotated[int, typer.Option(min=1, help="Of each message and its reply.")] = 4,
    hostile: Annotated[bool, typer.Option("--hostile", help="Hostile messages instead.")] = False,
    split: Annotated[list[str] | None, typer.Option(help="train, validation, test, ood.")] = None,
    activations: Annotated[
        Path | None,
        typer.Option(help="The recipe's own collection (nla train); nothing is collected anew."),
    ] = None,
    quick: QuickOption = False,
) -> None:
    """Write decodes of messages; without options, of the ordinary ones never trained on."""
    with clear_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        messages = min(messages, QUICK_MESSAGES) if quick else messages
        fast = has_fast_bfloat16(torch.device("cpu"))
        dtype = torch.bfloat16 if fast else torch.float32
        av_dir, ar_dir = resolve_nla(av), resolve_nla(ar)
        recipe = recipe_of(av_dir)
        documents = chosen(recipe, hostile, split or HELD_OUT)[:messages]
        pair = open_for_evaluation(
            av_dir, ar_dir, resolve_target, dtype=dtype, batch_size=DECODE_BATCH
        )
        with out.open("w", encoding="utf-8") as file, progress() as report:
            rows = (
                collected(recipe, documents, positions, fast, report)
                if activations is None
                else rows_of(
                    activations, documents, positions, load_target(recipe.target).tokenizer
                )
            )
            seen: set[str] = set()
            for start in range(0, len(rows), DECODE_BATCH):
                for line in decoded(pair, recipe, rows[start : start + DECODE_BATCH]):
                    seen.add(line["request_id"])
                    file.write(json.dumps(line) + "\n")
                report("decode", min(start + DECODE_BATCH, len(rows)), len(rows))
    output().print(f"{len(rows)} decodes of {len(seen)} messages, in {dtype}: {out}")


def chosen(
    recipe: Recipe, hostile: bool, splits: Sequence[str], wheels: Wheels = corpus_wheels
) -> list[tuple[TrainingDocument, str]]:
    """Documents of hostile or of ordinary kinds, in an order fixed by the seed.

    Raises:
        InputDataError: there are none in these splits.
    """
    found = [
        (document, split)
        for document, split in split_corpus(recipe, wheels)
        if split in splits
        and KINDS[theme_of(document.digest, document.kind).kind].harmful == hostile
    ]
    if not found:
        raise InputDataError(f"the recipe's corpus has no such messages in {', '.join(splits)}")
    order = np.random.default_rng(recipe.seed).permutation(len(found))
    return [found[i] for i in order.tolist()]


def collected(
    recipe: Recipe,
    documents: list[tuple[TrainingDocument, str]],
    positions: int,
    fast: bool,
    report: Any,
) -> list[dict[str, Any]]:
    """Content rows of the documents, each with its vector and the texts around it."""
    target = load_target(recipe.target)
    reply_model = load_target(recipe.target, dtype=torch.bfloat16).model if fast else None
    options = replace(
        recipe.collect, positions_per_document=positions, max_batches=None, autocast=fast
    )
    with TemporaryDirectory() as directory:
        for done, total in collect(
            target.model,
            target.tokenizer,
            documents,
            Path(directory),
            options,
            seed=recipe.seed,
            reply_model=reply_model,
        ):
            report("collect", done, total)
        return rows_of(Path(directory), documents, positions, target.tokenizer)


def rows_of(
    directory: Path, documents: list[tuple[TrainingDocument, str]], positions: int, tokenizer: Any
) -> list[dict[str, Any]]:
    """At most so many content rows a document of a collection, earliest first.

    Raises:
        InputDataError: the collection holds none of the documents, or is damaged.
    """
    texts = {document.digest: document.text for document, _ in documents}
    taken: Counter[str] = Counter()
    rows = []
    for file in sorted(directory.glob("shard-*.parquet")):
        for split in sorted({split for _, split in documents}):
            for vector, row in zip(*read_shard(file, split), strict=True):
                digest = str(row["digest"])
                if row["content"] and digest in texts and taken[digest] < positions:
                    taken[digest] += 1
                    rows.append(_row(vector, row, texts[digest], tokenizer))
    if not rows:
        raise InputDataError(f"{directory} holds no activations of these messages")
    return rows


def _row(vector: Any, row: dict[str, Any], text: str, tokenizer: Any) -> dict[str, Any]:
    return row | {
        "vector": torch.from_numpy(vector.astype(np.float32)),
        "prompt": text,
        "output": tokenizer.decode(row["reply_ids"]),
        "token": tokenizer.decode([row["token_id"]]),
    }


def decoded(pair: Pair, recipe: Recipe, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One corpus line a row."""
    vectors = torch.stack([row["vector"] for row in rows])
    decodings = pair.verbalizer.decode(vectors)
    rebuilt = pair.reconstructor.reconstruct([d.text for d in decodings])
    for row, decoding, vector, guess in zip(rows, decodings, vectors, rebuilt, strict=True):
        fidelity = measure(vector, guess, pair.reference)
        yield {
            "id": f"{row['digest'][:16]}-{row['position']}",
            "request_id": row["digest"][:16],
            "explanation": decoding.text,
            "prompt": row["prompt"],
            "output": row["output"],
            "token": row["token"],
            "position": row["position"],
            "phase": row["phase"],
            "layer": recipe.collect.layer,
            "model": recipe.target,
            "nla_id": recipe.nla_id,
            "fve": fidelity.fve,
            "cosine": fidelity.cosine,
        }


if __name__ == "__main__":
    run(main)
