"""A progress bar on stderr for work that takes longer than a user's patience."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def steps(title: str, count: int) -> Iterator[Callable[[str], None]]:
    """Show ``count`` steps; call the yielded function with each step's name as it begins."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=count)
        begun = 0

        def step(name: str) -> None:
            nonlocal begun
            bar.update(task, description=f"{title}: {name}", completed=begun)
            begun += 1

        yield step
        bar.update(task, description=title, completed=count)
