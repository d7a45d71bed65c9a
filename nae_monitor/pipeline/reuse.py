"""Which rows need no decode of their own, and the decodings that they get instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch

from nae_monitor.decode import DecodeCache, Decoder
from nae_monitor.health import Health
from nae_monitor.pipeline.circuit import Circuit
from nae_monitor.pipeline.ports import Clock
from nae_monitor.pipeline.turn import Row
from nae_monitor.records import Decoding
from nae_monitor.settings import CacheSettings


@runtime_checkable
class Measuring(Protocol):
    """A decoder that can tell how well a text fits another row than the one it was made for."""

    def measured(self, vectors: torch.Tensor, decodings: Sequence[Decoding]) -> list[Decoding]:
        """See :meth:`nae_monitor.decode.Nla.measured`."""
        ...


@dataclass(frozen=True, slots=True)
class Split:
    """Every row once."""

    found: list[tuple[Row, Decoding]] = field(default_factory=list)  # made before
    fresh: list[Row] = field(default_factory=list)  # need a decode of their own
    later: list[Row] = field(default_factory=list)  # stand after the tokens of a fresh one


class Reusing:
    """Asks the cache before the decoder; for one thread.

    ``decode.cache.prefix_hits``, ``decode.cache.near_hits`` and ``decode.cache.misses`` count
    rows. A near row's decoding is measured against the row itself; where the decoder cannot do
    that, its fidelity is unknown. Samples (rows with a seed) are always decoded.
    """

    def __init__(
        self, settings: CacheSettings, decoder: Decoder, health: Health, clock: Clock
    ) -> None:
        self._settings = settings
        self._decoder = decoder
        self._health = health
        self._cache = DecodeCache(settings, decoder.d_model, clock) if settings.is_on else None
        self._circuit = Circuit("decode_cache", health, clock)

    def split(self, rows: Sequence[Row]) -> Split:
        """Look rows up. Never raises: what cannot be looked up is fresh."""
        if self._cache is None or not rows:
            return Split(fresh=list(rows))
        cache = self._cache
        found = self._circuit.call(lambda: self._look_up(cache, rows))
        return found if found is not None else Split(fresh=list(rows))

    def keep(self, decodings: Sequence[tuple[Row, Decoding]]) -> None:
        """Remember decodings that were made now."""
        with self._circuit.guard():
            for row, decoding in decodings:
                if self._cache is not None and row.seed is None:
                    key = self._key(self._cache, row)
                    self._cache.keep(*key, row.activation.vector, decoding)

    def _look_up(self, cache: DecodeCache, rows: Sequence[Row]) -> Split:
        split, pending = Split(), set[tuple[int, bytes]]()
        near: list[tuple[Row, Decoding]] = []
        for row in rows:
            partition, prefix = self._key(cache, row)
            reuse = None
            if row.seed is None:
                reuse = cache.find(partition, prefix, row.activation.vector)
            if reuse is not None:
                (near if reuse.how == "near" else split.found).append((row, reuse.decoding))
            elif row.seed is None and prefix is not None and (partition, prefix) in pending:
                split.later.append(row)
            else:
                split.fresh.append(row)
                if row.seed is None and prefix is not None:
                    pending.add((partition, prefix))
        self._count("prefix_hits", len(split.found))
        self._count("near_hits", len(near))
        self._count("misses", len(split.fresh))
        split.found.extend(self._measured(near))
        return split

    def _measured(self, near: Sequence[tuple[Row, Decoding]]) -> list[tuple[Row, Decoding]]:
        if not near:
            return []
        decodings = [decoding for _, decoding in near]
        if isinstance(self._decoder, Measuring):
            vectors = torch.stack([row.activation.vector.float() for row, _ in near])
            told = self._decoder.measured(vectors, decodings)
        else:
            told = [replace(d, cosine=None, fve=None, rank=None, bank_size=0) for d in decodings]
        return [(row, decoding) for (row, _), decoding in zip(near, told, strict=True)]

    def _key(self, cache: DecodeCache, row: Row) -> tuple[int, bytes | None]:
        activation = row.activation
        request = activation.request
        ids = None
        if self._settings.prefix:
            ids = row.turn.prefix_ids(activation.position, activation.token_id)
        prefix = None if ids is None else cache.prefix(ids)
        return cache.partition(request.tenant, request.model), prefix

    def _count(self, name: str, amount: int) -> None:
        if amount:
            self._health.count(f"decode.cache.{name}", amount)
