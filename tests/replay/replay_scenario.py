"""One replay with a fake decoder; as a script, one that tells each part and may be killed."""

from __future__ import annotations

import resource
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nae_monitor.records import (
    Activation,
    Decoding,
    Finding,
    FindingState,
    Severity,
    Span,
    Transcript,
)
from nae_monitor.replay import replay

D_MODEL, LAYER, BATCH = 16, 20, 5
WORDS = ("keylogger", "recipe", "poison", "weather", "exploit")


class SlowDecoder:
    """Text from the vector alone; fails on the calls, counted from 0, that ``fails`` names."""

    nla_id, d_model, layer = "fake-nla", D_MODEL, LAYER

    def __init__(
        self, delay_s: float = 0.0, fails: Mapping[int, type[BaseException]] | None = None
    ) -> None:
        self.delay_s = delay_s
        self.fails = fails or {}
        self.calls = 0

    def decode(self, vectors: torch.Tensor) -> list[Decoding]:
        self.calls += 1
        if (error := self.fails.get(self.calls - 1)) is not None:
            raise error
        time.sleep(self.delay_s)
        return [self._one(vector, len(vectors)) for vector in vectors]

    def _one(self, vector: torch.Tensor, batch: int) -> Decoding:
        word = WORDS[int(vector.abs().sum() * 100) % len(WORDS)]
        # The company in its batch shows, as it may in the last bits of a real decoder.
        fve = float(vector[0]) + batch * 1e-9
        return Decoding(f"about {word}", True, 0.9, fve, 1, 256, self.nla_id, 5, time.time())


class WordJudge:
    """Matches words in the explanation."""

    def judge(
        self, activation: Activation, decoding: Decoding, transcript: Transcript
    ) -> tuple[Finding, ...]:
        start = decoding.text.find("poison")
        if start < 0:
            return ()
        place = activation.request.request_id, activation.position
        span = Span("word", "explanation", start, start + 6, "poison")
        return (
            Finding(
                *place, "id", "rule", "1", "Rule", Severity.HIGH, FindingState.MATCH, (span,),
                fve=decoding.fve,
            ),
        )  # fmt: skip


def replayed(
    live: Path,
    run: Path,
    *,
    delay_s: float = 0.0,
    fails: Mapping[int, type[BaseException]] | None = None,
    **options: Any,
) -> list[int]:
    """Replay; returns the batches not decoded, and those decoded, of the 40 or so there are."""
    decoder = SlowDecoder(delay_s, fails)
    arguments = {
        "judge": WordJudge(), "mode": "redecode", "batch_size": BATCH, "part_rows": BATCH,
        "suppress": {}, "manifest": {"rules_sha256": "rules"}, **options,
    }  # fmt: skip
    done = replay([live], run, decoder=decoder, **arguments)
    return [-(-done.rows // BATCH) - decoder.calls, decoder.calls]


if __name__ == "__main__":
    if len(sys.argv) > 3:  # no file may grow beyond so many bytes, as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), hard))
    replayed(
        Path(sys.argv[1]), Path(sys.argv[2]), delay_s=0.02,
        progress=lambda done, _: print(done, flush=True),
    )  # fmt: skip
