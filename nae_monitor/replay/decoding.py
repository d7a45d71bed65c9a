"""Which rows are decoded again, in batches, and why others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from nae_monitor.errors import EngineError
from nae_monitor.health import Health
from nae_monitor.records import Decoding
from nae_monitor.replay.index import Row
from nae_monitor.replay.ports import Decoder

COMPONENT = "replay.decode"
DECODE_FAILED = "decode_failed"


Mode = Literal["live", "missing", "redecode", "rescore"]
"""Which rows are decoded: ``live`` those whose live decoding was withheld, ``missing`` also those
never decoded, ``redecode`` all of them, ``rescore`` none."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Each row of a piece by its index: a decoding, or the reason it has none."""

    decodings: Mapping[int, Decoding]
    dropped: Mapping[int, str]
    reused: frozenset[int]  # of the decodings: made live


@dataclass(frozen=True, slots=True)
class RowDecoder:
    """Gives each row the decoding it is to be judged on."""

    decoder: Decoder | None
    mode: Mode
    batch_size: int
    health: Health

    def decode(self, piece: Sequence[Row]) -> Decoded:
        """Decode what must be decoded.

        Raises:
            EngineError: the decoder failed so often in a row that its circuit is open.
        """
        decodings: dict[int, Decoding] = {}
        dropped: dict[int, str] = {}
        wanted: list[int] = []
        for number, row in enumerate(piece):
            live = row.recorded.readable_decoding
            if live is not None and self.mode != "redecode":
                decodings[number] = live
            elif (reason := self._undecodable(row)) is not None:
                dropped[number] = reason
            else:
                wanted.append(number)
        reused = frozenset(decodings)
        for start in range(0, len(wanted), self.batch_size):
            batch = wanted[start : start + self.batch_size]
            results = self._batch([piece[number] for number in batch])
            if results is None:
                dropped.update(dict.fromkeys(batch, DECODE_FAILED))
            else:
                decodings.update(zip(batch, results, strict=True))
        return Decoded(decodings, dropped, reused)

    def _undecodable(self, row: Row) -> str | None:
        """Why a row is not handed to the decoder; None if it is."""
        if row.recorded.decoding is None and self.mode in ("live", "rescore"):
            return row.recorded.dropped_reason or "not_decoded"
        if self.mode == "rescore":
            return "withheld"
        if self.decoder is None:
            return "no_decoder"
        activation = row.recorded.activation
        if activation.layer not in (self.decoder.layer, -1):
            return "layer"
        vector = activation.vector.float()
        if not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
            return "bad_vector"
        return None

    def _batch(self, rows: Sequence[Row]) -> list[Decoding] | None:
        results: list[list[Decoding]] = []
        with self.health.guard(COMPONENT):
            results.append(self._ask(rows))
        if results:
            return results[0]
        if self.health.is_open(COMPONENT):
            raise EngineError(
                "the decoder failed on five batches in a row; what was judged is kept"
            )
        return None

    def _ask(self, rows: Sequence[Row]) -> list[Decoding]:
        if self.decoder is None:
            raise EngineError("no decoder")
        vectors = torch.stack([row.recorded.activation.vector.float() for row in rows])
        decodings = self.decoder.decode(vectors)
        if len(decodings) != len(rows):
            raise EngineError(f"{len(decodings)} decodings for {len(rows)} vectors")
        # How long it took is no fact about the row, and would differ from run to run.
        return [replace(decoding, seconds=0.0) for decoding in decodings]
