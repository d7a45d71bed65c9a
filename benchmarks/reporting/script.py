"""How a benchmark starts, shows its progress and ends.

Exit codes are those of ``nae-monitor``: 0 every claim that could be measured holds, 1 one does
not, 2 bad usage or configuration, 3 bad input data, 130 interrupted.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from nae_monitor.cli.terminal import error_line, errors, output, quiet_libraries
from nae_monitor.errors import ConfigurationError, Mark, NaeMonitorError, Problem
from reporting.claims import Report

QuickOption = Annotated[
    bool, typer.Option("--quick", help="Much less work: a look, not a measurement.")
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write machine and claims to this file.")
]
INTERRUPTED = 130
FILE_WIDTH = 120  # of tables that go into a file or a pipe


def run(command: Callable[..., None]) -> None:
    """Run ``command`` as this process's command line; does not return."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()


@contextmanager
def clear_errors(json_file: Path | None) -> Iterator[None]:
    """One line an error instead of a traceback; a JSON file that cannot be is found out first."""
    quiet_libraries()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        if json_file is not None:
            _check_writable(json_file)
        yield
    except KeyboardInterrupt:
        error_line("interrupted", prefix="")
        raise typer.Exit(INTERRUPTED) from None
    except NaeMonitorError as error:
        for line in str(error).splitlines() or [type(error).__name__]:
            error_line(line)
        raise typer.Exit(error.exit_code) from error


def _check_writable(file: Path) -> None:
    place = file if file.exists() else file.absolute().parent
    if file.is_dir() or not place.exists() or not os.access(place, os.W_OK):
        problem = Problem(Mark(str(file)), "cannot be written", "name a file in a directory")
        raise ConfigurationError([problem])


def finish(
    report: Report, tables: Sequence[Table], notes: Sequence[str], json_file: Path | None
) -> int:
    """Print tables and notes, write the JSON, and return the exit code."""
    console = output()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    for table in tables:
        console.print(table)
    for note in notes:
        console.print(f"- {note}")
    console.print(report.machine.line)
    if report.machine.is_busy:
        console.print(
            f"Other work took {report.machine.busy_elsewhere_cores:.1f} cores when the run began: "
            "its speeds are too low."
        )
    console.print(f"{report.summary}.")
    if json_file is not None:
        report.write(json_file)
    return report.exit_code


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on standard error; what is yielded takes (name, done, total)."""
    tasks: dict[str, Any] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=errors(), transient=True) as bars:

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield report
