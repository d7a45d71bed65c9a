"""What a pair writes of ordinary rows, and what it makes of texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from nae_monitor.concepts.build import Reconstruct
from nae_monitor.concepts.rows import LabelledRows, Unit
from nae_monitor.decode import Nla


def frames_of(nla: Nla, rows: LabelledRows, count: int, *, seed: int = 0) -> list[str]:
    """Explanations of ``count`` ordinary rows, of as many documents as there are.

    The verbalizer reads directions only, so unit vectors are decoded as the rows themselves.
    """
    chance = np.random.default_rng(seed)
    order = chance.permutation(len(rows))
    _, first = np.unique(rows.documents[order], return_index=True)
    chosen = order[np.sort(first)[:count]]
    decodings = nla.verbalizer.decode(torch.from_numpy(rows.unit[chosen]))
    return [decoding.text for decoding in decodings if decoding.text]


def reconstruct_by(nla: Nla) -> Reconstruct:
    """The pair's reconstructor, from texts to vectors [n, d]."""

    def reconstruct(texts: Sequence[str]) -> Unit:
        found: Unit = nla.reconstructor.reconstruct(texts).double().cpu().numpy()
        return found

    return reconstruct
