"""What the commands print: data to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import Any

from rich.console import Console

from nae_monitor.models.progress import standard_error

_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn"}


def output() -> Console:
    """Standard output, for tables and text; never interprets markup in data."""
    return Console(markup=False, highlight=False, emoji=False)


def errors() -> Console:
    """Standard error, for progress and messages."""
    return standard_error()


def printable(text: str) -> str:
    """Text that cannot drive a terminal: control characters but newline become U+FFFD.

    Prompts, replies and decoded text are untrusted; escape sequences could rewrite the screen.
    """
    return "".join(
        c
        if c == "\n"
        else " "
        if c == "\t"
        else "\ufffd"
        if unicodedata.category(c) in _UNSAFE
        else c
        for c in text
    )


def error_line(message: str, prefix: str = "error: ") -> None:
    """One line on standard error, however long."""
    print(prefix + printable(message.replace("\n", " ")), file=sys.stderr)  # noqa: T201


def json_line(value: Any) -> None:
    """One JSON value as one line of ASCII on standard output, at once."""
    print(json.dumps(value, allow_nan=False), flush=True)  # noqa: T201


def quiet_libraries() -> None:
    """Keep progress bars and advice of the model libraries off the terminal."""
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
