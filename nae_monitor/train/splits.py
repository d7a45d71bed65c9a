"""The corpus of a recipe, each document in its split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from nae_monitor.train.corpus import TrainingDocument, read_corpus
from nae_monitor.train.families import assign_splits
from nae_monitor.train.recipe import Recipe
from nae_monitor.train.wheels import corpus_wheels

Wheels = Callable[[], Mapping[str, Path]]  # distribution name -> verified wheel file


def split_corpus(
    recipe: Recipe, wheels: Wheels = corpus_wheels
) -> list[tuple[TrainingDocument, str]]:
    """Every document with its split: train, validation, test or ood.

    Raises:
        InputDataError: a wheel is missing or is not what the corpus was made for.
    """
    options = recipe.corpus
    documents = read_corpus(
        wheels(),
        seed=recipe.seed,
        chat_limit=options.chat_limit,
        technical_limit=options.technical_limit,
    )
    splits = assign_splits(
        [d.text for d in documents],
        validation_share=options.validation_share,
        test_share=options.test_share,
    )
    outside = set(options.out_of_distribution)
    return [
        (d, "ood" if d.source in outside else split)
        for d, split in zip(documents, splits, strict=True)
    ]
