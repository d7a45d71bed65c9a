"""Batches of similar length in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch


def length_batches(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int
) -> list[np.ndarray]:
    """Shuffle, cut into pools of 50 batches, sort each pool by length, shuffle the batches."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    sizes = np.asarray(lengths)
    batches: list[np.ndarray] = []
    pool = 50 * batch_size
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(sizes[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    batches = [b for b in batches if len(b) == batch_size] or batches
    return [batches[i] for i in rng.permutation(len(batches))]


def endless_batches(
    lengths: Sequence[int], batch_size: int, *, seed: int, first_step: int
) -> Iterator[np.ndarray]:
    """Batches from step ``first_step`` on, epoch after epoch; resuming sees the same order."""
    epoch, skip = 0, first_step
    while True:
        batches = length_batches(lengths, batch_size, seed=seed, epoch=epoch)
        if skip < len(batches):
            yield from batches[skip:]
            skip = 0
        else:
            skip -= len(batches)
        epoch += 1


def another_row(count: int, *, seed: int) -> np.ndarray:
    """A permutation [count] that leaves no row in its place (of one row: that row)."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=np.int64)
    other[order] = np.roll(order, 1)
    return other


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids [b, t] and mask [b, t]."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask
