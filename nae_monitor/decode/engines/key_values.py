"""Keys and values of rows of different lengths, in caches that are allocated once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What the static caches hold; their bytes follow from it alone."""

    layers: int
    rows: int
    kv_heads: int
    capacity_tokens: int  # a row
    head_size: int

    def size_bytes(self, itemsize_bytes: int) -> int:
        """Keys and values of all rows."""
        values = self.layers * self.rows * self.kv_heads * self.capacity_tokens * self.head_size
        return 2 * values * itemsize_bytes


class KeyValues:
    """Keys and values of all rows, allocated once.

    Args:
        shape: of the caches.
        cos: [capacity, head_size] of the rotary positions.
        signed_sin: likewise, the first half of it negated.
        like: gives device and dtype.
    """

    def __init__(self, shape: CacheShape, cos: Tensor, signed_sin: Tensor, like: Tensor) -> None:
        sizes = (shape.layers, shape.rows, shape.kv_heads, shape.capacity_tokens, shape.head_size)
        self.shape = shape
        # Zeros, as what is masked is still multiplied: by 0, which rubbish of NaN would survive.
        self.keys = torch.zeros(sizes, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.cos, self.signed_sin = cos, signed_sin

    @property
    def size_bytes(self) -> int:
        """Allocated."""
        return self.shape.size_bytes(self.keys.element_size())

    def copy_prefix(self, source: KeyValues, tokens: int, first: int, count: int) -> None:
        """Begin ``count`` rows with the first ``tokens`` of row 0 of ``source``."""
        rows = slice(first, first + count)
        self.keys[:, rows, :, :tokens] = source.keys[:, :1, :, :tokens]
        self.values[:, rows, :, :tokens] = source.values[:, :1, :, :tokens]
        self.values[:, rows, :, tokens:] = 0  # a row that ended in NaN must not reach its heir

    def move(self, source: int, target: int, tokens: int) -> None:
        """Let row ``target`` hold what row ``source`` does."""
        self.keys[:, target, :, :tokens] = self.keys[:, source, :, :tokens]
        self.values[:, target, :, :tokens] = self.values[:, source, :, :tokens]

    def view(self, first: int, starts: list[int], tokens: int, heads: int) -> View:
        """Rows from ``first`` on, of which each is about to grow by ``tokens``."""
        return View(self, first, starts, tokens, heads)


class View:
    """What is the same in all blocks of one pass: positions, mask, places in the cache."""

    def __init__(
        self, cache: KeyValues, first: int, starts: list[int], tokens: int, heads: int
    ) -> None:
        device = cache.keys.device
        self.count, self.tokens = len(starts), tokens
        self._cache, self._rows = cache, slice(first, first + len(starts))
        self._longest = max(starts) + tokens
        self._groups = heads // cache.shape.kv_heads
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(
            tokens, device=device
        )
        self.cos = cache.cos[positions][:, None]
        self.signed_sin = cache.signed_sin[positions][:, None]
        seen = torch.arange(self._longest, device=device) <= positions[:, :, None]
        blocked = torch.zeros(seen.shape, dtype=cache.keys.dtype, device=device)
        blocked.masked_fill_(~seen, -torch.inf)
        # [n * kv_heads, groups * t, longest]: the query heads of one key head one after another.
        repeats = (cache.shape.kv_heads, self._groups, 1)
        self._mask = blocked[:, None].repeat(1, *repeats).flatten(0, 1)
        self._where = (
            torch.arange(first, first + self.count, device=device)[:, None],
            positions,
        )

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [n, kv_heads, t, head_size]; give back all that is visible so far."""
        rows, positions = self._where
        kept_keys, kept_values = self._cache.keys[layer], self._cache.values[layer]
        kept_keys[rows, :, positions] = keys.transpose(1, 2)
        kept_values[rows, :, positions] = values.transpose(1, 2)
        return (
            kept_keys[self._rows, :, : self._longest],
            kept_values[self._rows, :, : self._longest],
        )

    def attention(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[n * t, heads * head_size] of [n, heads, t, head_size] queries.

        Query heads that share a key head become rows of one product, so that keys and values are
        read once and never repeated.
        """
        count, heads, tokens, size = queries.shape
        kv_heads = heads // self._groups
        grouped = queries.reshape(count * kv_heads, self._groups * tokens, size)
        # Two products: for a query or three, torch's own attention takes twice to four times as
        # long as it takes to read the keys and values.
        scores = torch.baddbmm(
            self._mask, grouped, keys.flatten(0, 1).transpose(1, 2), alpha=size**-0.5
        )
        attended = torch.bmm(scores.softmax(-1), values.flatten(0, 1))
        attended = attended.view(count, heads, tokens, size).transpose(1, 2)
        return attended.reshape(count * tokens, heads * size)
