"""What the screen shows while models are prepared and loaded: our progress, no one else's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@cache
def standard_error() -> Console:
    """The one console on standard error; never interprets markup in data.

    What is live on two consoles at once is drawn into one another's lines.
    """
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


@contextmanager
def steps(title: str, count: int) -> Iterator[Callable[[str], None]]:
    """Show ``count`` steps; call the yielded function with each step's name as it begins."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=standard_error()) as bar:
        task = bar.add_task(title, total=count)
        begun = 0

        def step(name: str) -> None:
            nonlocal begun
            bar.update(task, description=f"{title}: {name}", completed=begun)
            begun += 1

        yield step
        bar.update(task, description=title, completed=count)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' progress bars and load reports out of the host's terminal."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with _quiet_gguf():
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _quiet_gguf() -> Iterator[None]:
    """The reader of GGUF files draws a bar of its own, which no setting of transformers stops."""
    from transformers import modeling_gguf_pytorch_utils

    reader: Any = modeling_gguf_pytorch_utils
    bar = getattr(reader, "tqdm", None)
    if bar is None:
        yield
        return
    reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar
