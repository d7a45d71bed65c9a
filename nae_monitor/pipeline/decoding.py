"""Rows to decodings: which are fit, when the decoder is asked, and why a row has no decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from nae_monitor.decode import Decoder, screen_vectors
from nae_monitor.errors import AbandonedError, EngineError
from nae_monitor.health import Health
from nae_monitor.pipeline.blindness import Blindness
from nae_monitor.pipeline.circuit import Circuit
from nae_monitor.pipeline.ports import Clock
from nae_monitor.pipeline.reuse import Reusing
from nae_monitor.pipeline.turn import Row
from nae_monitor.records import Decoding
from nae_monitor.settings import CacheSettings

COMPONENT = "decode"


@dataclass(frozen=True, slots=True)
class Decoded:
    """Every row, once: with its decoding, or with the reason why it has none."""

    decodings: list[tuple[Row, Decoding]] = field(default_factory=list)
    dropped: list[tuple[Row, str]] = field(default_factory=list)


class DecodeStage:
    """Asks the decoder; after failures in a row only now and then, until it works again."""

    def __init__(
        self,
        decoder: Decoder,
        health: Health,
        blindness: Blindness,
        clock: Clock,
        expire_s: float,
        cache: CacheSettings,
    ) -> None:
        self._decoder = decoder
        self._health = health
        self._blindness = blindness
        self._clock = clock
        self._expire_s = expire_s
        self._reusing = Reusing(cache, decoder, health, clock)
        self._circuit = Circuit(COMPONENT, health, clock)

    def decode(self, rows: Sequence[Row]) -> Decoded:
        """Decode what is in time and fit, and has no decoding yet that serves for it."""
        result = Decoded()
        split = self._reusing.split(self._fit(rows, result))
        result.decodings.extend(split.found)
        self._make(split.fresh, result)
        if split.later:  # what they wait for is made by now, if it could be made
            again = self._reusing.split(split.later)
            result.decodings.extend(again.found)
            self._make([*again.fresh, *again.later], result)
        return result

    def abandon(self) -> bool:
        """Give up what is being decoded; from another thread. False where that cannot be done."""
        return self._decoder.abandon()

    def _make(self, rows: Sequence[Row], result: Decoded) -> None:
        if rows and not self._circuit.allows():
            result.dropped.extend((row, "decode_circuit_open") for row in rows)
            return
        plain = [row for row in rows if row.seed is None]
        for group in (plain, [row for row in rows if row.seed is not None]):
            if group:
                self._ask(group, result)

    def _fit(self, rows: Sequence[Row], result: Decoded) -> list[Row]:
        now_s = self._clock()
        fit: list[Row] = []
        for row in rows:
            reason = None
            if now_s - row.queued_s > self._expire_s:
                reason = "expired"
            else:
                vector = row.activation.vector
                fault = screen_vectors(vector.unsqueeze(0), self._decoder.d_model).reasons[0]
                reason = None if fault is None else f"bad_vector_{fault}"
            if reason is None:
                fit.append(row)
            else:
                result.dropped.append((row, reason))
        return fit

    def _ask(self, rows: list[Row], result: Decoded) -> None:
        # float32 as in replay, so that the decoder sees the same bits in both.
        vectors = torch.stack([row.activation.vector.float() for row in rows])
        reason = "decode_failed"
        seeds = [row.seed for row in rows if row.seed is not None]

        def ask() -> list[Decoding] | None:
            nonlocal reason
            try:
                decoder = self._decoder
                answer = list(
                    decoder.decode(vectors, seeds=seeds) if seeds else decoder.decode(vectors)
                )
            except EngineError:
                reason = "engine"
                raise
            except AbandonedError:
                reason = "shutdown"
                return None
            if len(answer) != len(rows):
                raise ValueError(f"{len(answer)} decodings for {len(rows)} vectors")
            return answer

        decodings = self._circuit.call(ask)
        if decodings is None:
            result.dropped.extend((row, reason) for row in rows)
            if reason == "shutdown":  # nothing has failed
                return
            why = f"{len(rows)} rows dropped: {reason}"
            self._blindness.failed(COMPONENT, why, rows[-1].activation.request)
        else:
            self._blindness.works(COMPONENT)
            made = list(zip(rows, decodings, strict=True))
            self._reusing.keep(made)
            result.decodings.extend(made)
