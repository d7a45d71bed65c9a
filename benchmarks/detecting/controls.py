"""What must fall to chance: activations of other conversations, none at all, an untrained pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from detecting.choices import Cell
from detecting.decodes import Key
from detecting.figures import Scored
from detecting.panel import Evidence, Panel
from detecting.scoring import Sign, Vector, of_decodes, of_screen


def shuffled(evidence: Evidence, panel: Panel, cell: Cell, seed: int) -> Scored:
    """Every row and every decode is one of a random other conversation.

    How many there are stays as it was; what is left above chance is told by lengths.
    """
    material, chance = evidence.material, np.random.default_rng(seed)
    digests = [
        digest
        for part, hostile in (("threshold", False), ("test", False), ("test", True))
        for digest in panel.digests(part, hostile)
    ]
    # As many of either label: else the pool would be ordinary and lengths would tell more.
    hostile = set(material.part("test", True))
    ordinary = chance.permutation([d for d in digests if d not in hostile])[: len(hostile)]
    pool = [*hostile, *ordinary.tolist()]
    rows = np.concatenate([material.scores[d][cell.choice] for d in sorted(pool)])
    signs = [sign for d in sorted(pool) for sign in evidence.signs_of(d, cell)]

    def features(digest: str) -> Vector:
        count = len(evidence.signs_of(digest, cell))
        drawn = chance.choice(rows, size=len(material.scores[digest][cell.choice]))
        said = [signs[i] for i in chance.integers(len(signs), size=count)]
        return np.concatenate([of_screen(drawn), of_decodes(said)])

    return panel.scored(features, None, panel.learnt(evidence.both(cell)))


def zeroed(evidence: Evidence, panel: Panel, cell: Cell) -> Scored:
    """Zeros in place of every row: they still have a score, and the decoder refuses them."""
    material = evidence.material
    directions = material.directions[cell.choice]

    def features(digest: str) -> Vector:
        talk = material.talks[digest]
        zeros = torch.zeros(len(talk.positions), directions.d_model)
        scores = directions.scores(zeros, talk.is_prompt).amax(1).double().numpy()
        return np.concatenate([of_screen(scores), of_decodes([])])

    return panel.scored(features, None, panel.learnt(evidence.both(cell)))


def untrained(
    evidence: Evidence, panel: Panel, cell: Cell, keys: Sequence[Key], signs: Mapping[Key, Sign]
) -> Scored:
    """Texts of the base model in the verbalizer's place, read as the verbalizer's are."""
    by: dict[str, list[Sign]] = {}
    for key in keys:
        by.setdefault(key[0], []).append(signs[key])
    model = panel.learnt(evidence.decodes(cell))
    hostile = set(evidence.material.part("test", True))
    scores = {d: float(model.score(of_decodes(found)[None])[0]) for d, found in by.items()}
    of = {
        flag: np.array([s for d, s in scores.items() if (d in hostile) is flag])
        for flag in (True, False)
    }
    return Scored(of[False], of[True], of[False], np.zeros(0))
