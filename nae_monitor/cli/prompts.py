"""Prompts from a file or standard input: one a line, or JSON Lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nae_monitor.errors import ConfigurationError, InputDataError, Mark, Problem
from nae_monitor.strict_yaml import nearest

MAX_BYTES = 64 * 1024 * 1024
KEYS = ("prompt", "session_id", "tenant")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One user message and whose it is."""

    text: str
    where: str  # file:line, for messages
    session_id: str | None = None
    tenant: str | None = None


def read_prompts(source: str) -> list[Prompt]:
    """Read every prompt of ``source``, a file or ``-`` for standard input.

    A file is JSON Lines if it is called ``.jsonl`` or its first line is an object with a
    ``prompt``; else each line that is not blank is a prompt.

    Raises:
        ConfigurationError: the file cannot be read.
        InputDataError: too large, not UTF-8, no prompt in it, or a line that is no prompt.
    """
    name = "standard input" if source == "-" else source
    lines = list(_lines(_read(source, name)))
    structured = source.endswith(".jsonl") or (bool(lines) and _is_object(lines[0][1]))
    prompts = [
        _structured(text, f"{name}:{number}") if structured else Prompt(text, f"{name}:{number}")
        for number, text in lines
    ]
    if not prompts:
        raise InputDataError(f"{name}: holds no prompt; write one a line")
    return prompts


def _read(source: str, name: str) -> bytes:
    try:
        if source == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        problem = Problem(Mark(name), f"prompts cannot be read: {error.strerror}", "name a file")
        raise ConfigurationError([problem]) from error
    if len(data) > MAX_BYTES:
        raise InputDataError(f"{name}: larger than {MAX_BYTES} bytes; split it")
    return data


def _lines(data: bytes) -> Iterator[tuple[int, str]]:
    """Line number from 1 and text of each line that is not blank."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputDataError("prompts are not UTF-8; save the file as UTF-8") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _is_object(line: str) -> bool:
    value = _parse(line)
    return isinstance(value, dict) and "prompt" in value


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _structured(line: str, where: str) -> Prompt:
    value = _parse(line)
    if not isinstance(value, dict):
        raise InputDataError(f'{where}: is not a JSON object; write {{"prompt": "…"}}')
    for key in value:
        if key not in KEYS:
            raise InputDataError(f"{where}: unknown key {key!r} ({nearest(key, KEYS)})")
    text = value.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise InputDataError(f"{where}: `prompt` is missing, empty or not text")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputDataError(f"{where}: `prompt` holds half a surrogate pair, which is no text")
    for key in ("session_id", "tenant"):
        if not isinstance(value.get(key), str | None):
            raise InputDataError(f"{where}: `{key}` is not text")
    return Prompt(text, where, value.get("session_id"), value.get("tenant"))
