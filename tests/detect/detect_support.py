"""Rules and records for the tests of detect."""

from pathlib import Path

import numpy as np
import torch

from nae_monitor.detect import RuleSet, load_rules
from nae_monitor.records import (
    Activation,
    Decoding,
    Phase,
    Request,
    SampleReason,
    Transcript,
)

HEADER = """\
schema_version: 1
title: A rule
id: 6b1f0c1e-3c1d-4c7e-9a53-0d7f6a4b9e01
name: a_rule
severity: medium
risk_score: 40
"""
SIMPLE = HEADER + "detection: {hide_kw: {keywords: {any: [hide]}}, condition: hide_kw}\n"


def rules_of(tmp_path: Path, *texts: str) -> RuleSet:
    """Load each text from a file of its own."""
    for number, text in enumerate(texts):
        (tmp_path / f"rule{number}.yaml").write_text(text, encoding="utf-8")
    return load_rules([tmp_path])


def activation(
    position: int = 20,
    phase: Phase = Phase.COMPLETION,
    layer: int = 20,
    norm: float = 200.0,
    request: Request | None = None,
    captured_unix_ns: int = 0,
) -> Activation:
    vector = torch.zeros(4, dtype=torch.float32)
    vector[0] = norm
    return Activation(
        request=request or Request("r1", "r1", "smollm2-135m-instruct"),
        position=position,
        token_id=7,
        token=" the",
        phase=phase,
        layer=layer,
        vector=vector,
        reason=SampleReason.RANDOM,
        captured_unix_ns=captured_unix_ns,
    )


def decoding(text: str, fve: float | None = 0.6, cosine: float | None = 0.8) -> Decoding:
    return Decoding(text, True, cosine, fve, 1, 256, "nla", 20, 0.1)


def transcript(prompt: str | None = "", output: str | None = "") -> Transcript:
    return Transcript(prompt, output)


class LetterEncoder:
    """A real, small encoder: the unit vector of a text's letter counts. Counts its calls."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts: list[str]) -> np.ndarray:
        self.seen.extend(texts)
        rows = [[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts]
        counts = np.asarray(rows, dtype=np.float64) + 1e-9
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)
