"""All that costs time, in an order in which a run that is cut short is still worth reading."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detecting.apart_cases import EXAM_LEARNT
from detecting.choices import (
    SCREENS,
    STAGES,
    Cell,
    Choice,
    bought,
    in_subset,
    learnt_directions,
    order,
    scores_of,
)
from detecting.conversations import Case
from detecting.decodes import Explainer, Journal, Key, decode
from detecting.rows import Talk
from nae_monitor.screen import Directions

Report = Callable[[str, int, int], None]
APART = (Cell("ar", 2), Cell("contrast", 2), Cell("probe", 2), Cell("random", 2))
UNTRAINED = Cell("ar", 1)
UNTRAINED_CASES = 100  # hostile and ordinary ones of the test part, each


@dataclass(frozen=True, eq=False, slots=True)
class Material:
    """Conversations with their rows, and what every way of choosing makes of them."""

    cases: tuple[Case, ...]
    talks: Mapping[str, Talk]
    directions: Mapping[Choice, Directions]
    scores: Mapping[str, Mapping[Choice, NDArray[np.float64]]]  # by conversation, each [n]
    orders: Mapping[str, Mapping[Choice, NDArray[np.int64]]]

    def part(self, name: str, hostile: bool) -> list[str]:
        """Digests of one part, one sort."""
        return [c.digest for c in self.cases if c.part == name and c.hostile == hostile]

    @property
    def fitted(self) -> list[Case]:
        """Conversations of the part that scores are learnt on."""
        return [case for case in self.cases if case.part == "fit"]

    def chosen(self, digest: str, cell: Cell) -> list[Key]:
        """What the cell decodes of one conversation, most wanted first."""
        positions = self.talks[digest].positions
        rows = self.orders[digest][cell.choice][: bought(len(positions), cell.budget)]
        return [(digest, int(position)) for position in positions[torch.from_numpy(rows)]]

    def within(self, cell: Cell, digest: str, part: str) -> bool:
        """Whether a cell covers a conversation."""
        return part == "fit" or not cell.is_subset or in_subset(digest)

    def wanted(self, cell: Cell) -> list[Key]:
        """What the cell decodes of all conversations of the curve."""
        return [
            key
            for case in self.cases
            if case.part not in ("directions", "apart")
            and self.within(cell, case.digest, case.part)
            for key in self.chosen(case.digest, cell)
        ]

    def wanted_apart(self, cell: Cell) -> list[Key]:
        """What it decodes of the conversations that are reported apart."""
        return [
            key
            for case in self.cases
            if case.part == "apart" and case.document.source != EXAM_LEARNT
            for key in self.chosen(case.digest, cell)
        ]

    def vector(self, key: Key) -> torch.Tensor:
        """The row [d] of one position."""
        talk = self.talks[key[0]]
        place = int(torch.searchsorted(talk.positions, key[1]))
        return talk.vectors[place].float()


def prepare(
    cases: Sequence[Case],
    talks: Mapping[str, Talk],
    shipped: Directions,
    *,
    base_model: str,
    layer: int,
    seed: int,
) -> Material:
    """Learn directions, score every row along them, order every conversation's rows.

    Args:
        cases: all conversations.
        talks: with their rows.
        shipped: the directions that the pair ships, made by ``ar`` from the rules' words.
        base_model: the target.
        layer: of the rows.
        seed: of what is drawn.
    """
    usable = [case for case in cases if len(talks[case.digest].positions)]
    directions: dict[Choice, Directions] = {"ar": shipped}
    directions |= learnt_directions(
        [case for case in usable if case.part == "directions"],
        talks,
        base_model=base_model,
        layer=layer,
        seed=seed,
    )
    judged = [case.digest for case in usable if case.part != "directions"]
    scores = {
        digest: {name: scores_of(directions[name], talks[digest]) for name in SCREENS}
        for digest in judged
    }
    every: tuple[Choice, ...] = tuple(dict.fromkeys(cell.choice for cell in STAGES))
    orders = {
        digest: {name: order(name, talks[digest], scores[digest], seed) for name in every}
        for digest in judged
    }
    return Material(tuple(usable), talks, directions, scores, orders)


def stages(
    material: Material,
    explainer: Explainer,
    journal: Journal,
    cells: Sequence[Cell],
    *,
    until_s: float,
    report: Report,
) -> Iterator[Cell]:
    """Decode cell after cell; yields those that are whole, and ends with the time.

    What an earlier cell has decoded is no part of a later one's work.
    """
    before: set[Key] = set()
    for cell in cells:
        name = f"decode {cell.choice} {cell.budget}"

        def told(done: int, total: int, name: str = name) -> None:
            report(name, done, total)

        wanted = [key for key in material.wanted(cell) if key not in before]
        before.update(wanted)
        whole = decode(explainer, wanted, material.vector, journal, until_s=until_s, report=told)
        if not whole:
            return
        yield cell


def stages_apart(
    material: Material,
    explainer: Explainer,
    journal: Journal,
    cells: Sequence[Cell],
    *,
    until_s: float,
    report: Report,
) -> None:
    """Decode what is reported apart, behind everything else, until the time is up."""
    chosen = [cell for cell in APART if cell in cells]
    keys = list(dict.fromkeys(key for cell in chosen for key in material.wanted_apart(cell)))
    decode(
        explainer, keys, material.vector, journal, until_s=until_s,
        report=lambda done, total: report("decode apart", done, total),
    )  # fmt: skip


def untrained_keys(material: Material) -> list[Key]:
    """What the base model is given to explain in the verbalizer's place."""
    digests = [
        digest
        for hostile in (True, False)
        for digest in material.part("test", hostile)[:UNTRAINED_CASES]
    ]
    return [key for digest in digests for key in material.chosen(digest, UNTRAINED)]


def whole_cells(material: Material, journal: Journal) -> list[Cell]:
    """The cells of which every decode is there."""
    return [cell for cell in STAGES if all(key in journal.found for key in material.wanted(cell))]


def deadline(minutes: float | None) -> float:
    """Monotonic seconds at which decoding ends."""
    return np.inf if minutes is None else time.monotonic() + 60 * minutes


def rates(found: Mapping[Key, Mapping[str, Any]]) -> tuple[float, float]:
    """Explanations a second of one worker, and tokens of one explanation."""
    seconds = np.array([one["seconds"] for one in found.values()])
    tokens = np.array([one["tokens"] for one in found.values()])
    return float(1 / seconds.mean()), float(tokens.mean())
