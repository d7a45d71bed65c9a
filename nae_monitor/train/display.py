"""What a training run shows: bars with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_EVERY_S = 30.0  # between two lines of progress where there is no terminal


class Display:
    """Shows stages: :meth:`tick` moves a stage's bar, :meth:`row` prints a measurement.

    Use it as a context manager; on a terminal it holds the bars below the printed rows.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, tuple[float, int]] = {}  # stage -> when and where this run began
        self._printed_s = 0.0

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def tick(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` batches or steps of ``stage`` are finished."""
        if self._console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, completed=done - 1)
            self._bars.update(self._tasks[stage], completed=done, total=total)
            return
        now_s = time.monotonic()
        begun_s, first = self._begun.setdefault(stage, (now_s, done))
        if done == total or now_s - self._printed_s >= PLAIN_EVERY_S:
            self._printed_s = now_s
            left = (now_s - begun_s) / max(1, done - first) * (total - done)
            eta = f", {duration(left)} left" if first < done < total else ""
            self._console.print(f"{stage}  {done}/{total}{eta}", soft_wrap=True)

    def row(self, stage: str, row: Mapping[str, Any]) -> None:
        """Print a measurement; a row of ``done`` and ``total`` is a tick."""
        if set(row) == {"done", "total"}:
            self.tick(stage, row["done"], row["total"])
            return
        figures = "  ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
        )
        self._console.print(f"{stage}  {figures}", soft_wrap=True)


def duration(seconds: float) -> str:
    """``1 h 02 min``, ``3 min 05 s`` or ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
