"""A small recording of several tenants and turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from nae_monitor.recording import RecordingWriter, RequestRecord
from nae_monitor.records import (
    Activation,
    Coverage,
    Decoding,
    Finding,
    FindingState,
    Phase,
    Request,
    SampleReason,
    Severity,
    Span,
    VerdictState,
)

D_MODEL = 4


@contextmanager
def abandoning(writer: RecordingWriter) -> Iterator[None]:
    yield
    writer.abandon()


def write_turns(
    path: Path,
    *,
    requests: int = 5,
    rows: int = 3,
    text: str = "text",
    encrypted: bool = False,
    close: bool = True,
    created_unix_ns: int = 1,
) -> Path:
    """Every text in it is ``text``; not ``close``: as after a crash behind the last whole file."""
    writer = RecordingWriter(
        path,
        manifest={"layer": 3},
        d_model=D_MODEL,
        content="full",
        rotate_rows=4,
        encrypted=encrypted,
        created_unix_ns=created_unix_ns,
    )
    with closing(writer) if close else abandoning(writer):
        for number in range(requests):
            one = Request(f"r{number}", f"g{number}", "m", None, f"t{number % 2}")
            for position in range(rows):
                vector = torch.full((D_MODEL,), float(position))
                activation = Activation(
                    one, position, 7, "t", Phase.PROMPT, 3, vector, SampleReason.EVERY_N,
                    {"harm": 0.25},
                )  # fmt: skip
                decoding = Decoding(text, True, 0.9, None, 1, 2, "nla", 1, 0.1)
                writer.write_activation(activation, decoding)
            span = Span("word", "explanation", 0, len(text), text)
            names = ("id", "rule", "1", "Rule", Severity.LOW, FindingState.MATCH, (span,))
            writer.write_findings([Finding(one.request_id, 1, *names)])
            coverage = Coverage(rows, rows, rows, rows, rows, 0, {"expired": number})
            writer.write_request(
                RequestRecord(one, text, rows, 0, coverage, VerdictState.UNDECIDED, ("why",))
            )
    return path
