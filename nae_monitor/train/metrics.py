"""Files that say how a training went: a row a measurement, and a row a step, bounded in size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nae_monitor.train.files import replacing, write_errors

METRICS, STEPS = "metrics.jsonl", "steps.jsonl"
MAX_STEP_ROWS = 10_000  # about 1 MB; a longer run keeps one row for several steps


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, oldest first; a line that a kill tore is left out."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add one row.

    Raises:
        ConfigurationError: it cannot be written.
    """
    with write_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def forget_after(path: Path, step: int) -> None:
    """Drop rows of steps that were lost with a kill: they will be taken again."""
    rows = read_metrics(path)
    kept = _lines([row for row in rows if row.get("step", 0) <= step])
    if path.exists() and path.read_text(encoding="utf-8") != kept:
        with replacing(path) as temporary:
            temporary.write_text(kept, encoding="utf-8")


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@dataclass(frozen=True, slots=True)
class StepRow:
    """One optimizer step."""

    step: int  # from 1
    loss: float
    rate: float  # learning rate
    examples: int
    tokens: int  # of the examples, without the fixed prompt and without padding
    seconds: float


@dataclass(slots=True)
class StepLog:
    """Writes a row for every step, or a mean over several, to ``steps.jsonl``.

    Args:
        path: the file.
        steps: of the whole run, which settles how many share a row.
    """

    path: Path
    steps: int
    _held: list[StepRow] = field(default_factory=list)

    def add(self, row: StepRow) -> None:
        """Take one step; its row is written when it is full."""
        self._held.append(row)
        if row.step % -(-self.steps // MAX_STEP_ROWS) == 0:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        held, self._held = self._held, []
        if held:
            seconds = sum(r.seconds for r in held)
            row = {
                "step": held[-1].step,
                "loss": round(sum(r.loss for r in held) / len(held), 6),
                "rate": float(f"{held[-1].rate:.4g}"),
                "tokens_per_s": round(sum(r.tokens for r in held) / max(seconds, 1e-9), 1),
            }
            append_row(self.path, row)
