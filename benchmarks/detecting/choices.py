"""Which positions a conversation's decodes go to: an order for each way of choosing, a budget.

Every order is fixed for all budgets, so that a larger budget only adds to a smaller one and the
same decodes serve many curves. The orders look at a whole conversation; a live screen has not yet
seen its end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from detecting.conversations import Case
from detecting.rows import Talk
from nae_monitor.concepts import (
    Backend,
    LabelledRows,
    Ordinary,
    Whitening,
    build,
    directions_of,
)
from nae_monitor.screen import Directions

Choice = Literal["ar", "contrast", "probe", "random", "uniform", "entropy"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
SCREENS: tuple[Choice, ...] = CHOICES[:3]
LEARNT: tuple[Backend, ...] = ("contrast", "probe")
ROWS_PER_DOCUMENT = 12  # to learn directions from
SUBSET_BUDGET, SUBSET_SHARE = 8, 0.25  # from this budget on, of this share of the conversations


@dataclass(frozen=True, slots=True)
class Cell:
    """One way of choosing at one budget."""

    choice: Choice
    budget: int

    @property
    def is_subset(self) -> bool:
        """Whether it is measured on a part of the conversations."""
        return self.budget >= SUBSET_BUDGET


_WANTED: tuple[Choice, ...] = ("ar", "random", "probe", "contrast", "uniform", "entropy")
# What is wanted first comes first: a run that is cut short has whole cells, not bits of all. Two
# decodes per 100 rows hold the one.
STAGES: tuple[Cell, ...] = tuple(
    Cell(choice, budget) for budget in (2, 1, 4, 8, 16) for choice in _WANTED
)


def learnt_directions(
    cases: Sequence[Case],
    talks: Mapping[str, Talk],
    *,
    base_model: str,
    layer: int,
    seed: int,
    backends: Sequence[Backend] = LEARNT,
) -> dict[Backend, Directions]:
    """``contrast`` and ``probe`` of hostile conversations against ordinary ones."""
    rows = labelled(cases, talks, seed)
    ordinary = Ordinary.of(rows)
    whitening = Whitening.of(ordinary.fit)
    return {
        backend: directions_of(
            build(backend, rows, whitening, seed=seed),
            ordinary.scale,
            base_model=base_model,
            layer=layer,
            provenance={},
        )
        for backend in backends
    }


def labelled(cases: Sequence[Case], talks: Mapping[str, Talk], seed: int) -> LabelledRows:
    """At most :data:`ROWS_PER_DOCUMENT` rows of each conversation, drawn by the seed."""
    chance = np.random.default_rng(seed)
    unit, documents, kinds, hostile, prompt = [], [], [], [], []
    # Numbered at random: whoever halves documents by number shall have both sorts in each half.
    for number, place in enumerate(chance.permutation(len(cases)).tolist()):
        case = cases[place]
        talk = talks[case.digest]
        drawn = chance.permutation(len(talk.positions))[:ROWS_PER_DOCUMENT]
        vectors = talk.vectors[torch.from_numpy(drawn)].double().numpy()
        unit.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        documents += [number] * len(drawn)
        kinds += [case.kind] * len(drawn)
        hostile += [case.hostile] * len(drawn)
        prompt += talk.is_prompt.numpy()[drawn].tolist()
    return LabelledRows(
        np.concatenate(unit),
        np.array(documents, dtype=np.int64),
        np.array(kinds),
        np.array(hostile, dtype=bool),
        np.array(prompt, dtype=bool),
    )


def scores_of(directions: Directions, talk: Talk) -> NDArray[np.float64]:
    """The largest score of each row [n], in deviations of ordinary rows."""
    if not len(talk.positions):
        return np.zeros(0)
    found = directions.scores(talk.vectors.float(), talk.is_prompt).amax(1)
    result: NDArray[np.float64] = found.double().numpy()
    return result


def order(
    choice: Choice, talk: Talk, scores: Mapping[Choice, NDArray[np.float64]], seed: int
) -> NDArray[np.int64]:
    """Indices of the rows [n], the first to decode first."""
    count = len(talk.positions)
    if choice in scores:
        return np.argsort(-scores[choice], kind="stable")
    if choice == "entropy":
        return np.argsort(-talk.entropy.numpy(), kind="stable")
    if choice == "random":
        key = hashlib.sha256(f"{seed} {talk.digest}".encode()).digest()[:8]
        return np.random.default_rng(int.from_bytes(key, "little")).permutation(count)
    return evenly(count)


def evenly(count: int) -> NDArray[np.int64]:
    """Every index once, each start of the list spread over the whole (van der Corput 1935)."""
    bits = max(1, (count - 1).bit_length())
    spread = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)]
    return np.array([i for i in spread if i < count], dtype=np.int64)


def bought(rows: int, budget: int) -> int:
    """Decodes of a conversation: the budget per 100 rows, and at least one."""
    return min(rows, max(1, round(budget * rows / 100))) if budget and rows else 0


def in_subset(digest: str) -> bool:
    """Whether a conversation is among those that large budgets are measured on."""
    return int(digest[-6:], 16) / 16**6 < SUBSET_SHARE
