"""Measure a pair on content positions, template positions and a source it never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from nae_monitor.errors import InputDataError
from nae_monitor.models.encoder import Encoder
from nae_monitor.train.dataset import Examples
from nae_monitor.train.evaluate import Outcome, Pair, evaluate
from nae_monitor.train.held_out import held_out_examples, recipe_of, rows_of
from nae_monitor.train.intervals import Clusters, Measure
from nae_monitor.train.recipe import Recipe
from nae_monitor.train.run import Wheels
from nae_monitor.train.wheels import corpus_wheels
from quality.bounds import ABOVE_LAST_TOKEN

OOD = "ood"
Reporter = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured; the out-of-distribution and template parts are shares of it."""

    documents: int
    rows: int

    @property
    def out_of_distribution(self) -> Size:
        """Two fifths of the documents and half of the rows."""
        return Size(max(1, self.documents * 2 // 5), max(1, self.rows // 2))

    @property
    def template_rows(self) -> int:
        """A quarter of the rows."""
        return max(16, self.rows // 4)


@dataclass(frozen=True, slots=True)
class Measured:
    """Measures by name: of content positions, of template positions, of the foreign source."""

    content: Mapping[str, Measure]
    template: Mapping[str, Measure]
    foreign: Mapping[str, Measure]
    rows: Mapping[str, int]  # rows and documents of each
    notes: tuple[str, ...]


def measure_pair(
    pair: Pair,
    recipe: Recipe,
    encoder: Encoder,
    split: str,
    size: Size,
    report: Reporter = lambda *_: None,
    wheels: Wheels = corpus_wheels,
) -> Measured:
    """Measure all three kinds of positions; what a pair has no data for is left out and noted.

    Raises:
        InputDataError: the split has no documents or no content positions.
        ConfigurationError: the target cannot be used.
    """
    examples = held_out_examples(recipe, split, size.documents, report, wheels)
    notes: list[str] = []
    parts = {"content": _rows(examples, size.rows, recipe, content=True)}
    if examples.content.all():
        notes.append("the held-out documents gave no template positions")
    else:
        parts["template"] = _rows(examples, size.template_rows, recipe, content=False)
    if split != OOD:
        try:
            parts[OOD] = _foreign_rows(recipe, size.out_of_distribution, report, wheels)
        except InputDataError as error:
            notes.append(f"no out-of-distribution figure: {error}")
    found = {
        kind: _measures(pair, rows, encoder, recipe.seed, report) for kind, rows in parts.items()
    }
    counts = {f"{kind}_rows": len(rows) for kind, rows in parts.items()}
    counts |= {f"{kind}_documents": len(set(rows.digests)) for kind, rows in parts.items()}
    content = found["content"]
    foreign = found.get(OOD, content if split == OOD else {})
    return Measured(content, found.get("template", {}), foreign, counts, tuple(notes))


def _rows(examples: Examples, limit: int, recipe: Recipe, *, content: bool) -> Examples:
    return rows_of(examples, content=content, limit=limit, seed=recipe.seed)


def _foreign_rows(recipe: Recipe, size: Size, report: Reporter, wheels: Wheels) -> Examples:
    if not recipe.corpus.out_of_distribution:
        raise InputDataError("the recipe keeps no source out of training")
    examples = held_out_examples(recipe, OOD, size.documents, report, wheels)
    rows = _rows(examples, size.rows, recipe, content=True)
    if not len(rows):
        raise InputDataError("the documents of that source gave no content positions")
    return rows


def _measures(
    pair: Pair, examples: Examples, encoder: Encoder, seed: int, report: Reporter
) -> dict[str, Measure]:
    outcome = evaluate(pair, examples, encoder, seed=seed, progress=report)
    found = {m.name: m for m in outcome.measures}
    tokens = np.array([float(d.tokens) for d in outcome.decodings])
    clusters = Clusters.by_document(examples.digests, seed)
    found["tokens per explanation"] = clusters.mean("tokens per explanation", tokens)
    if pair.token_means:
        found[ABOVE_LAST_TOKEN] = above_last_token_mean(pair, outcome, clusters)
    return found


def above_last_token_mean(pair: Pair, outcome: Outcome, clusters: Clusters) -> Measure:
    """How much more of the variance the round trip keeps than the last token's mean vector.

    A paired difference: both are measured on the same documents of each draw.
    """
    unit = normalize(outcome.examples.vectors, dim=-1)
    mean = pair.reference.mean
    guess = torch.stack([pair.token_means.get(int(t), mean) for t in outcome.examples.token_ids])
    vectors = pair.reconstructor.reconstruct([d.text for d in outcome.decodings])
    rebuilt = normalize(vectors, dim=-1).nan_to_num(0.0)  # as the round trip itself is counted
    error, guess_error, distance = (
        (unit - other).square().sum(-1).numpy() for other in (rebuilt, guess, mean)
    )
    return clusters.ratio(ABOVE_LAST_TOKEN, guess_error - error, distance)


def recipe_for(pair: Pair, av_dir: Path, ar_dir: Path, named: str | None) -> tuple[Recipe, str]:
    """The recipe whose held-out documents to use, and a warning or nothing.

    Raises:
        InputDataError: no training record and none named, or one of another layer.
        ConfigurationError: the recipe cannot be read.
    """
    if named is not None:
        recipe, warning = Recipe.from_yaml(named), "the recipe was named: whether the pair was "
        warning += "trained on these documents is not known"
    else:
        recipe, other = recipe_of(av_dir), recipe_of(ar_dir)
        same = (recipe.corpus, recipe.seed) == (other.corpus, other.seed)
        warning = "" if same else "the reconstructor was trained on another split of the corpus"
    if pair.av.contract.layer not in (None, recipe.collect.layer):
        raise InputDataError(
            f"the pair reads layer {pair.av.contract.layer}, the recipe collects layer "
            f"{recipe.collect.layer}"
        )
    return recipe, warning
