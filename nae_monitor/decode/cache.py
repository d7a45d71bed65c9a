"""Decodings kept for rows that come again: after the same tokens, or with nearly the same vector.

A shared system prompt, a template and a retry put the same tokens before a row, and so the same
activation, up to rounding. Entries belong to one partition (a tenant and a model) and are never
used in another: a decoding may quote the words that it was made of, and even an answer that comes
early tells that somebody else asked the same.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from nae_monitor.records import Decoding
from nae_monitor.settings import CacheSettings

PREFIX_COSINE = 0.99  # rows after the same tokens: below it something else told them apart
ENTRY_OVERHEAD_BYTES = 4096  # texts and Python objects beside the vector, roughly
How = Literal["prefix", "near"]
Unit = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reuse:
    """A decoding of another row, marked as reused; with how it was found."""

    decoding: Decoding
    how: How


@dataclass(frozen=True, slots=True)
class _Entry:
    partition: int
    prefix: bytes | None
    decoding: Decoding
    since_s: float


class DecodeCache:
    """The decodings used last, bounded in entries, bytes and age. Not thread-safe.

    A prefix counts only where the vectors agree too (``PREFIX_COSINE``): an image or an adapter
    can stand behind the same tokens.

    Args:
        settings: bounds, and which ways of finding are on.
        d_model: width of the rows.
        clock: seconds, monotonic.
    """

    def __init__(self, settings: CacheSettings, d_model: int, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        entry_bytes = 4 * d_model + ENTRY_OVERHEAD_BYTES
        self.capacity = max(1, min(settings.entries, settings.limit_bytes // entry_bytes))
        self._key = secrets.token_bytes(32)  # so that a dump of memory holds no plain hashes
        self._units: Unit = np.zeros((self.capacity, d_model), dtype=np.float32)
        self._partition_of: NDArray[np.int64] = np.full(self.capacity, -1, dtype=np.int64)
        self._free = list(range(self.capacity))
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by slot, the used last at the end
        self._by_prefix: dict[tuple[int, bytes], int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def partition(self, tenant: str | None, model: str) -> int:
        """The part of the cache that rows of a tenant and model share."""
        name = f"{'' if tenant is None else 't' + tenant}\0{model}"
        return int.from_bytes(self._digest(name.encode("utf-8", "surrogatepass"))[:7], "big")

    def prefix(self, token_ids: Sequence[int]) -> bytes:
        """The key of a row after and including these tokens."""
        return self._digest(np.asarray(token_ids, dtype=np.int64).tobytes())

    def find(self, partition: int, prefix: bytes | None, vector: torch.Tensor) -> Reuse | None:
        """What was decoded before for a row; None where nothing was.

        Args:
            partition: of :meth:`partition`.
            prefix: of :meth:`prefix`; None where the tokens are not known.
            vector: [d], finite and not zero.
        """
        unit = _unit(vector)
        slot = self._by_prefix.get((partition, prefix)) if prefix is not None else None
        if slot is not None and self._agrees(slot, unit, PREFIX_COSINE):
            return self._reuse(slot, "prefix")
        if self._settings.near_cosine is None or not self._entries:
            return None
        cosines = np.where(self._partition_of == partition, self._units @ unit, -np.inf)
        slot = int(cosines.argmax())
        found = self._agrees(slot, unit, self._settings.near_cosine)
        return self._reuse(slot, "near") if found else None

    def keep(
        self, partition: int, prefix: bytes | None, vector: torch.Tensor, decoding: Decoding
    ) -> None:
        """Remember a decoding that was made now; one of the same prefix is replaced."""
        known = self._by_prefix.get((partition, prefix)) if prefix is not None else None
        if known is not None:
            self._drop(known)
        if not self._free:
            self._drop(next(iter(self._entries)))
        slot = self._free.pop()
        self._units[slot] = _unit(vector)
        self._partition_of[slot] = partition
        self._entries[slot] = _Entry(partition, prefix, decoding, self._clock())
        if prefix is not None:
            self._by_prefix[partition, prefix] = slot

    def _agrees(self, slot: int, unit: Unit, least: float) -> bool:
        """Whether an entry is that near and not too old; one that is too old goes."""
        entry = self._entries.get(slot)
        if entry is None:
            return False
        if self._clock() - entry.since_s > self._settings.max_age_s:
            self._drop(slot)
            return False
        return float(self._units[slot] @ unit) >= least

    def _reuse(self, slot: int, how: How) -> Reuse:
        self._entries.move_to_end(slot)
        decoding = self._entries[slot].decoding
        return Reuse(replace(decoding, reused=True, tokens=0, seconds=0.0), how)

    def _drop(self, slot: int) -> None:
        entry = self._entries.pop(slot)
        if entry.prefix is not None:
            del self._by_prefix[entry.partition, entry.prefix]
        self._partition_of[slot] = -1
        self._free.append(slot)

    def _digest(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=16, key=self._key).digest()


def _unit(vector: torch.Tensor) -> Unit:
    unit: Unit = torch.nn.functional.normalize(vector.float(), dim=0).numpy()
    return unit
