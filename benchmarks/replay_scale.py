"""A recording of a million rows replayed: peak memory beside that of a tenth of it, and rows/s.

The decoder is a fake, so that what is measured is replay itself: reading, ordering, keeping the
way back from a kill, writing. Each size runs in a process of its own; what the process held
before the replay began is taken off its peak.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from reporting.claims import Bound, Claim, Report, verdict
from reporting.machine import describe
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run
from rich.table import Table

from nae_monitor.errors import EngineError
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
    Transcript,
    VerdictState,
)
from nae_monitor.replay import replay

ROWS, QUICK_ROWS = 1_000_000, 40_000
D_MODEL, LAYER = 64, 3
ROWS_OF_REQUEST = 50
PIECE_BYTES = 2 * 1024 * 1024
MAX_BYTES_A_ROW = Bound(150, at_most=True)
NOTES = (
    f"vectors of {D_MODEL} numbers, {ROWS_OF_REQUEST} rows a request, pieces of 2 MiB",
    "bytes a row: what the peak grows by from a tenth of the rows to all, by row; the order of "
    "rows and a few numbers a request are all that may grow",
)


class FakeDecoder:
    """Says the same of every vector, at once."""

    nla_id, d_model, layer = "fake", D_MODEL, LAYER

    def decode(self, vectors: torch.Tensor) -> list[Decoding]:
        one = Decoding("about nothing in particular", True, 0.9, 0.5, 1, 256, "fake", 6, 0.0)
        return [one] * len(vectors)


class FakeJudge:
    """Finds something in one row of a hundred."""

    def judge(
        self, activation: Activation, decoding: Decoding, transcript: Transcript
    ) -> tuple[Finding, ...]:
        if activation.position % 100:
            return ()
        place = activation.request.request_id, activation.position
        return (Finding(*place, "id", "rule", "1", "Rule", Severity.LOW, FindingState.MATCH),)


def write(path: Path, rows: int) -> None:
    """A recording of ``rows`` rows, eight requests at a time as a server writes them."""
    vector = torch.linspace(-1, 1, D_MODEL)
    count = ROWS_OF_REQUEST
    with RecordingWriter(path, manifest={"layer": LAYER}, d_model=D_MODEL, content="full") as to:
        for first in range(0, rows // count, 8):
            requests = [
                Request(f"{n * 7919 % 1_000_003:07d}", "g", "m", started_unix_ns=n + 1)
                for n in range(first, min(first + 8, rows // count))
            ]
            for position in range(count):
                for request in requests:
                    reason = SampleReason.EVERY_N
                    to.write_activation(
                        Activation(request, position, 1, "t", Phase.PROMPT, LAYER, vector, reason),
                        None,
                    )
            for request in requests:
                coverage = Coverage(count, count, count, 0, 0, 0, {})
                to.write_request(RequestRecord(request, "", count, 0, coverage, VerdictState.CLEAN))


def replayed(source: Path, out: Path) -> dict[str, float]:
    """Replay in this process; peak growth in bytes, seconds and rows."""
    before = _peak_bytes()
    began_s = time.perf_counter()
    done = replay(
        [source], out, decoder=FakeDecoder(), judge=FakeJudge(), batch_size=256,
        piece_bytes=PIECE_BYTES, suppress={},
    )  # fmt: skip
    return {
        "peak_bytes": _peak_bytes() - before,
        "seconds": time.perf_counter() - began_s,
        "rows": done.judged,
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(place: Path, rows: int) -> dict[str, float]:
    """Write and replay ``rows`` rows, each in a process of its own."""
    name = str(place / str(rows))
    for step in ("write", "replay"):
        done = subprocess.run(
            [sys.executable, __file__, "--child", step, "--rows", str(rows), "--place", name],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise EngineError(f"{step} of {rows} rows ended with {done.returncode}")
    return dict(json.loads(done.stdout))


def table_of(claims: list[Claim]) -> Table:
    """One row a claim."""
    table = Table(title="replay of long recordings, fake decoder")
    table.add_column("measure")
    for name in ("value", "must reach", "holds"):
        table.add_column(name, justify="right")
    for claim in claims:
        bound = str(claim.bound) if claim.bound else ""
        table.add_row(claim.name, f"{claim.value:,.5g} {claim.unit}", bound, verdict(claim))
    return table


def main(
    rows: Annotated[int, typer.Option(min=1000, help="Of the longer recording.")] = ROWS,
    quick: QuickOption = False,
    json_file: JsonOption = None,
    child: Annotated[str, typer.Option(hidden=True)] = "",
    place: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Replay long recordings; exit code 1 where memory grows with them."""
    if child == "write":
        write(place, rows)
        return
    if child == "replay":
        print(json.dumps(replayed(place, place.with_name(f"{place.name}-run"))))
        return
    with clear_errors(json_file), tempfile.TemporaryDirectory() as directory:
        machine = describe(seconds=0.2 if quick else 1.0)
        rows = QUICK_ROWS if quick else rows
        found = {}
        with progress() as report:
            for number, count in enumerate((rows // 10, rows), start=1):
                found[count] = measured(Path(directory), count)
                report("sizes", number, 2)
        short, long = found[rows // 10], found[rows]
        growth = (long["peak_bytes"] - short["peak_bytes"]) / (long["rows"] - short["rows"])
        mib = 1024 * 1024
        claims = [
            Claim(f"peak, {rows // 10:,} rows", short["peak_bytes"] / mib, unit="MiB"),
            Claim(f"peak, {rows:,} rows", long["peak_bytes"] / mib, unit="MiB"),
            Claim("peak growth", growth, unit="bytes a row", bound=MAX_BYTES_A_ROW),
            Claim(f"speed, {rows:,} rows", long["rows"] / long["seconds"], unit="rows/s"),
        ]
        code = finish(Report(machine, claims), [table_of(claims)], NOTES, json_file)
    raise typer.Exit(code)


if __name__ == "__main__":
    run(main)
