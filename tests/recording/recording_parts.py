"""Rows and request records with everything filled in that a test does not care about."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from nae_monitor.recording import RecordingWriter, RequestRecord
from nae_monitor.records import (
    Activation,
    Coverage,
    Phase,
    Request,
    SampleReason,
    VerdictState,
)

REQUEST = Request("r", "r", "m")
NO_COVERAGE = Coverage(0, 0, 0, 0, 0, 0, {})


def prompt_row(vector: torch.Tensor, position: int = 0, **changes: Any) -> Activation:
    """A row of a prompt's token "t", of layer 3."""
    values = {
        "request": REQUEST, "position": position, "token_id": 1, "token": "t",
        "phase": Phase.PROMPT, "layer": 3, "vector": vector, "reason": SampleReason.RANDOM,
    }  # fmt: skip
    return Activation(**{**values, **changes})


def clean_request(prompt_tokens: int, output_tokens: int, **changes: Any) -> RequestRecord:
    """What is known of a finished request that nothing was found in."""
    values = {
        "request": REQUEST, "prompt_text": "ab", "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens, "coverage": NO_COVERAGE, "state": VerdictState.CLEAN,
    }  # fmt: skip
    return RequestRecord(**{**values, **changes})


def write_undecoded(
    path: Path, vectors: Iterable[torch.Tensor], d_model: int, *records: RequestRecord
) -> Path:
    """A recording of prompt rows without decodings, from position 0."""
    with RecordingWriter(path, manifest={"layer": 3}, d_model=d_model, content="full") as writer:
        for position, vector in enumerate(vectors):
            writer.write_activation(prompt_row(vector, position), None)
        for record in records:
            writer.write_request(record)
    return path
