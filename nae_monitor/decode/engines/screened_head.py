"""The likeliest token of each row: 8-bit products find who may be it, float32 ones decide.

The language-model head of a small model is a fifth of its multiplications, and all but a few of its
tens of thousands of logits are far from the largest. Here they are first taken from weights and
states rounded to 8 bits; the tokens whose approximate logit may belong to the largest are
multiplied again in float32, so that the answer is that of the float32 product.

How far an approximate logit may lie off: rounding errors of a vector's numbers are taken as
independent and uniform over a step (Widrow and Kollár, Quantization Noise, 2008), which makes the
error of a product of 576 of them nearly normal. ``DEVIATIONS`` of it on either side are allowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nae_monitor.decode.engines.quantised import Int8Weights, rounded_rows

PART_TOKENS = 4096  # logits of so many tokens at once stay in the processor's caches
DEVIATIONS = 8.0  # two-sided, of a normal error: 10^-15 of all logits


@dataclass(frozen=True, eq=False, slots=True)
class Best:
    """What decides the next token of n rows."""

    ids: Tensor  # [n], of the largest score
    scores: Tensor  # [n, 2], the largest two; the second is -inf where it is far from the first

    @classmethod
    def of(cls, scores: Tensor) -> Best:
        """Of all scores [n, m], which are overwritten."""
        first = scores.max(dim=1, keepdim=True)
        # Not topk, which takes as long again as all of this.
        second = scores.scatter_(1, first.indices, -torch.inf).amax(dim=1, keepdim=True)
        return cls(first.indices[:, 0], torch.cat([first.values, second], dim=1))


class ScreenedHead:
    """Chooses like the largest entry of ``states @ weight.T``; read-only.

    Args:
        weight: [vocabulary, d] float32 on the CPU, kept as it is beside the rounded copy;
            :func:`~nae_monitor.decode.engines.quantised.lacking` says None.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        # Parts of tokens whose vectors are about as long have errors that are about as large.
        norms = torch.linalg.vector_norm(weight, dim=1)
        order = norms.argsort()
        self._ids = order.split(PART_TOKENS)
        self._parts = [Int8Weights(weight[ids]) for ids in self._ids]
        self._norms = torch.stack([norms[ids].amax() for ids in self._ids])
        self._steps = torch.stack([part.scale.amax() for part in self._parts])

    @property
    def extra_bytes(self) -> int:
        """Of the rounded copy."""
        return sum(part.extra_bytes for part in self._parts)

    def best(self, states: Tensor) -> Best | None:
        """Of [n, d] normed float32 states; None where a row has no largest (it is not finite)."""
        shifted, scale = rounded_rows(states)
        approximate = [part.product(shifted) for part in self._parts]  # in steps of the row's scale
        largest = torch.stack([part.amax(1) for part in approximate], dim=1)  # [n, parts]
        lengths = torch.linalg.vector_norm(states, dim=1, keepdim=True) / scale
        off = (self._norms.square() + (lengths * self._steps).square()).sqrt_()
        off.mul_(DEVIATIONS / math.sqrt(12))
        least = (largest - off).amax(1, keepdim=True)  # of the true largest
        if not bool(torch.isfinite(least).all()):
            return None
        rows, ids = self._candidates(approximate, least - off, largest)
        logits = (states[rows] * self._weight[ids]).sum(1)
        return _first_two(len(states), rows, ids, logits)

    def _candidates(
        self, approximate: list[Tensor], floors: Tensor, largest: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows [k] and ids [k] of all that may be a row's largest."""
        rows, ids = [], []
        hot = largest >= floors
        for place in hot.any(0).nonzero().flatten().tolist():
            near = hot[:, place].nonzero().flatten()
            found, token = (approximate[place][near] >= floors[near, place, None]).nonzero().T
            rows.append(near[found])
            ids.append(self._ids[place][token])
        return torch.cat(rows), torch.cat(ids)


def _first_two(count: int, rows: Tensor, ids: Tensor, logits: Tensor) -> Best:
    order = torch.from_numpy(np.lexsort((-logits.numpy(), rows.numpy())))
    rows, ids, logits = rows[order], ids[order], logits[order]
    starts = torch.searchsorted(rows, torch.arange(count + 1))
    first, behind = starts[:-1], starts[:-1] + 1
    scores = torch.full((count, 2), -torch.inf)
    scores[:, 0] = logits[first]
    several = behind < starts[1:]
    scores[several, 1] = logits[behind[several]]
    return Best(ids[first], scores)
