"""Held-out activations for an evaluation, collected on demand and kept in the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nae_monitor.binding import bind
from nae_monitor.errors import InputDataError
from nae_monitor.models import cache_directory, load_target
from nae_monitor.strict_yaml import Document
from nae_monitor.train.collect import IDENTITY, collect, identity
from nae_monitor.train.dataset import Examples, load_examples
from nae_monitor.train.files import make_directory, replacing
from nae_monitor.train.lora import has_fast_bfloat16
from nae_monitor.train.recipe import Recipe
from nae_monitor.train.run import Wheels, split_corpus
from nae_monitor.train.target_checks import check_target
from nae_monitor.train.wheels import corpus_wheels

Progress = Callable[[str, int, int], None]


def recipe_of(pair_directory: Path) -> Recipe:
    """The recipe that a trained directory carries in its training record.

    Raises:
        InputDataError: there is no record, as beside pairs trained elsewhere, or it is damaged.
        ConfigurationError: its recipe is not one of this version.
    """
    place = pair_directory / "training.json"
    try:
        recipe = json.loads(place.read_text(encoding="utf-8"))["recipe"]
    except FileNotFoundError as error:
        raise InputDataError(
            f"{place} is missing: only pairs trained with this package name the corpus they "
            "held out"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputDataError(f"{place} is no training record ({type(error).__name__})") from error
    return bind(Document(recipe, {}, str(place)), Recipe)


def held_out_examples(
    recipe: Recipe,
    split: str,
    documents: int,
    progress: Progress = lambda *_: None,
    wheels: Wheels = corpus_wheels,
) -> Examples:
    """Rows of ``documents`` documents of one split; vectors in float32 arithmetic.

    The documents are the first of the split in an order fixed by the recipe's seed.

    Raises:
        InputDataError: the split is empty, or the corpus cannot be read.
        ConfigurationError: the target cannot be used, or the cache cannot be written.
    """
    chosen = [(d, s) for d, s in split_corpus(recipe, wheels) if s == split][:documents]
    if not chosen:
        raise InputDataError(f"the corpus has no documents of the split {split!r}")
    target = load_target(recipe.target)
    check_target(target, recipe.collect.layer)
    options = replace(recipe.collect, autocast=False, batch_size=32, max_batches=None)
    directory = cache_directory() / "held-out" / f"{recipe.nla_id}-{split}-{documents}"
    _keep_only(directory, identity(recipe.target, chosen, options, recipe.seed))
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
    return load_examples(
        directory, target.tokenizer, split, norm_quantile=1.0, d_model=target.d_model
    )


def _keep_only(directory: Path, wanted: str) -> None:
    """Empty the directory of shards that were not collected as ``wanted`` says."""
    place = make_directory(directory) / IDENTITY
    if place.exists() and place.read_text(encoding="utf-8") == wanted:
        return
    for stale in directory.glob("shard-*.parquet"):
        stale.unlink()
    with replacing(place) as temporary:
        temporary.write_text(wanted, encoding="utf-8")


def rows_of(examples: Examples, *, content: bool, limit: int, seed: int) -> Examples:
    """At most ``limit`` content (or template) rows, drawn by the seed."""
    wanted = examples.content if content else ~examples.content
    rows = wanted.nonzero().flatten().numpy()
    drawn = np.random.default_rng(seed).permutation(rows)[:limit]
    return examples.select(drawn)
