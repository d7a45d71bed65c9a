"""Held-out activations for an evaluation, collected on demand and kept in the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from nae_monitor.models import cache_directory, load_target
from nae_monitor.train.collect import collect
from nae_monitor.train.dataset import Examples, load_examples
from nae_monitor.train.lora import has_fast_bfloat16
from nae_monitor.train.recipe import Recipe
from nae_monitor.train.run import split_corpus

Progress = Callable[[str, int, int], None]


def recipe_of(pair_directory: Path) -> Recipe:
    """The recipe that a trained directory carries in its training record."""
    from nae_monitor.binding import bind
    from nae_monitor.strict_yaml import Document

    record = json.loads((pair_directory / "training.json").read_text())
    return bind(Document(record["recipe"], {}, str(pair_directory / "training.json")), Recipe)


def held_out_examples(recipe: Recipe, split: str, documents: int, progress: Progress) -> Examples:
    """Rows of ``documents`` documents of one split; vectors in float32 arithmetic.

    The documents are the first of the split in an order fixed by the recipe's seed.
    """
    target = load_target(recipe.target)
    options = replace(recipe.collect, autocast=False, batch_size=32, max_batches=None)
    chosen = [(d, s) for d, s in split_corpus(recipe) if s == split][:documents]
    directory = cache_directory() / "held-out" / f"{recipe.nla_id}-{split}-{documents}"
    stamp = directory / "options.json"
    wanted = json.dumps({"options": asdict(options), "seed": recipe.seed})
    if directory.exists() and (not stamp.exists() or stamp.read_text() != wanted):
        for stale in directory.glob("shard-*.parquet"):
            stale.unlink()
    directory.mkdir(parents=True, exist_ok=True)
    stamp.write_text(wanted)
    fast = has_fast_bfloat16(torch.device("cpu"))
    reply_model = load_target(recipe.target, dtype=torch.bfloat16).model if fast else None
    for done, total in collect(
        target.model,
        target.tokenizer,
        chosen,
        directory,
        options,
        seed=recipe.seed,
        reply_model=reply_model,
    ):
        progress(f"collect {split}", done, total)
    return load_examples(directory, target.tokenizer, split, norm_quantile=1.0)


def rows_of(examples: Examples, *, content: bool, limit: int, seed: int) -> Examples:
    """At most ``limit`` content (or template) rows, drawn by the seed."""
    wanted = examples.content if content else ~examples.content
    rows = wanted.nonzero().flatten().numpy()
    drawn = np.random.default_rng(seed).permutation(rows)[:limit]
    return examples.select(drawn)
