"""Doubles for testing code that embeds the monitor: a decoder, a sink, a clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from nae_monitor.records import Alert, Decoding


class ManualClock:
    """A monotonic clock that moves only when told."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Move forward."""
        self.now_s += seconds


class FakeDecoder:
    """Decodes by a function of the vector; by default the text names its largest coordinate."""

    def __init__(
        self,
        d_model: int,
        layer: int,
        text: Callable[[torch.Tensor], str] | None = None,
        nla_id: str = "fake",
    ) -> None:
        self.d_model = d_model
        self.layer = layer
        self.nla_id = nla_id
        self.decoded_rows = 0
        self._text = text or (lambda vector: f"coordinate {int(vector.argmax())}")

    def decode(
        self, vectors: torch.Tensor, *, seeds: Sequence[int] | None = None
    ) -> list[Decoding]:
        """One decoding a row; ``seeds`` changes nothing."""
        self.decoded_rows += len(vectors)
        return [
            Decoding(
                text=self._text(vector),
                closed=True,
                cosine=1.0,
                fve=1.0,
                rank=1,
                bank_size=0,
                nla_id=self.nla_id,
                tokens=4,
                seconds=0.0,
            )
            for vector in vectors.float()
        ]

    def abandon(self) -> bool:
        """False: a call is over before it could be given up."""
        return False


class ListSink:
    """Keeps alerts in a list."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []

    def emit(self, alert: Alert) -> None:
        """Append."""
        self.alerts.append(alert)

    def takes(self, alert: Alert) -> bool:
        """Every alert."""
        return True

    def close(self, deadline_s: float) -> bool:
        """Nothing is ever pending."""
        return True

    def stats(self) -> Mapping[str, int]:
        """Accepted and delivered are the same number."""
        return {"accepted": len(self.alerts), "delivered": len(self.alerts)}
