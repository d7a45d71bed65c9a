"""Texts to judge without a model: one explanation a line, or JSON lines with its circumstances.

A JSON line holds ``explanation`` and, where known, ``id``, ``request_id``, ``prompt``, ``output``,
``token``, ``fve``, ``cosine``, ``phase``, ``position``, ``layer``, ``model``, ``time_unix_s`` (of
capture), ``request`` (the request.KEY fields) and ``expect`` (names of the rules that must match).
A line that names no position stands one token behind the line before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from nae_monitor.errors import InputDataError
from nae_monitor.records import (
    Activation,
    Decoding,
    Phase,
    Request,
    SampleReason,
    Transcript,
)
from nae_monitor.strict_yaml import nearest

SUFFIXES = (".txt", ".jsonl")
MAX_LINE_BYTES = 4 * 1024 * 1024
PAST_THE_START = 1_000  # position of the first text: past every rule's min_token_index
MAX_TIME_UNIX_S = 2**33
_TEXTS = (
    *("id", "request_id", "prompt", "output", "token"),
    *("model", "explanation", "phase", "nla_id"),
)
_NUMBERS = ("fve", "cosine")
_INTEGERS = ("position", "layer")
_KEYS = (*_TEXTS, *_NUMBERS, *_INTEGERS, "time_unix_s", "request", "expect")


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One decoding to judge. ``expected``: rules that must match it; None: nothing is said."""

    id: str
    activation: Activation
    decoding: Decoding
    transcript: Transcript
    expected: frozenset[str] | None = None


def read_corpus(paths: Iterable[Path], nla_id: str = "") -> Iterator[Sample]:
    """Every sample of text and JSONL files, and of directories of them.

    ``nla_id`` is the pair of the decodes that name none.

    Raises:
        InputDataError: a file that is not there or not of its kind; names the line.
    """
    for path in paths:
        files = sorted(f for f in path.rglob("*") if f.suffix in SUFFIXES) if path.is_dir() else []
        if path.is_dir() and not files:
            raise InputDataError(f"{path}: holds no .txt or .jsonl file")
        for file in files or [path]:
            yield from _samples(file, nla_id)


def _samples(file: Path, nla_id: str) -> Iterator[Sample]:
    if file.suffix not in SUFFIXES:
        raise InputDataError(f"{file}: a corpus is a .txt or .jsonl file, or a recording")
    try:
        with file.open("rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{file}:{number}"
                if len(line) > MAX_LINE_BYTES:
                    raise InputDataError(f"{where}: longer than {MAX_LINE_BYTES} bytes")
                if line.strip():
                    known = {"position": PAST_THE_START + number - 1, "nla_id": nla_id}
                    yield _sample(line, where, file.suffix == ".jsonl", known)
    except OSError as error:
        raise InputDataError(f"{file}: cannot be read: {error.strerror}") from error


def _sample(line: bytes, where: str, is_json: bool, known: dict[str, Any]) -> Sample:
    try:
        text = line.decode("utf-8").strip()
        value = json.loads(text) if is_json else {"explanation": text}
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputDataError(f"{where}: is not {'JSON' if is_json else 'UTF-8'}") from error
    if not isinstance(value, dict):
        raise InputDataError(f"{where}: is not a JSON object")
    _check(value, where)
    return sample_of(known | value, where)


def _check(value: dict[str, Any], where: str) -> None:
    for key, item in value.items():
        if key not in _KEYS:
            raise InputDataError(f"{where}: unknown key {key[:60]!r}; {nearest(key, _KEYS)}")
        is_number = isinstance(item, int | float) and not isinstance(item, bool)
        fits = (
            (key in _TEXTS and isinstance(item, str))
            or (key in _NUMBERS and (item is None or is_number))
            or (key in _INTEGERS and type(item) is int and 0 <= item < 2**31)
            or (key in ("prompt", "output") and item is None)
            or (key == "time_unix_s" and is_number and 0 <= item < MAX_TIME_UNIX_S)
            or (key == "request" and isinstance(item, dict) and _all_text(item.values()))
            or (key == "expect" and isinstance(item, list) and _all_text(item))
        )
        if not fits:
            raise InputDataError(f"{where}: {key} is not of its type")
    if not isinstance(value.get("explanation"), str):
        raise InputDataError(f"{where}: lacks its explanation")
    if value.get("phase", "completion") not in list(Phase):
        raise InputDataError(f"{where}: phase is one of {', '.join(Phase)}")


def _all_text(items: Iterable[Any]) -> bool:
    return all(isinstance(item, str) for item in items)


def sample_of(value: dict[str, Any], name: str) -> Sample:
    """A sample from the checked values of a JSON line; what is missing gets a neutral value.

    Prompt and output that are not given are empty, fve is full (1.0), unless null: unscored.
    """
    request_id = value.get("request_id") or value.get("id") or name
    request = Request(
        request_id,
        request_id,
        value.get("model", ""),
        attributes=MappingProxyType(dict(value.get("request", {}))),
        tenant=value.get("request", {}).get("tenant"),
        session_id=value.get("request", {}).get("session_id"),
    )
    activation = Activation(
        request=request,
        position=value.get("position", PAST_THE_START),
        token_id=-1,
        token=value.get("token", ""),
        phase=Phase(value.get("phase", "completion")),
        layer=value.get("layer", 0),
        vector=torch.zeros(1),
        reason=SampleReason.REPLAY,
        captured_unix_ns=round(value.get("time_unix_s", 0) * 1_000_000_000),
    )
    fve, cosine = value.get("fve", 1.0), value.get("cosine", 1.0)
    nla_id = value.get("nla_id", "")
    decoding = Decoding(value["explanation"], True, cosine, fve, None, 0, nla_id, 0, 0.0)
    transcript = Transcript(value.get("prompt", ""), value.get("output", ""))
    expected = value.get("expect")
    return Sample(
        value.get("id") or name,
        activation,
        decoding,
        transcript,
        None if expected is None else frozenset(expected),
    )


def line_of(sample: Sample) -> dict[str, Any]:
    """A sample as a JSON line that :func:`read_corpus` reads as the same to judge."""
    activation, decoding, said = sample.activation, sample.decoding, sample.transcript
    request = activation.request
    texts = {"model": request.model, "nla_id": decoding.nla_id, "token": activation.token}
    keys = {**request.attributes, "tenant": request.tenant, "session_id": request.session_id}
    return {
        "id": sample.id,
        "request_id": request.request_id,
        "explanation": decoding.text,
        "prompt": said.prompt,
        "output": said.output,
        "fve": decoding.fve,
        "cosine": decoding.cosine,
        "phase": activation.phase.value,
        "position": activation.position,
        "layer": activation.layer,
        "time_unix_s": activation.captured_unix_ns / 1e9,
        "request": {name: value for name, value in keys.items() if isinstance(value, str)},
        **texts,
    }
