"""Directions in activation space: named vectors in a safetensors file beside the rules."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_WIDTH = 65_536
SUFFIX = ".safetensors"

Vector = NDArray[np.float64]


class DirectionError(ValueError):
    """A direction that cannot be used; ``mend`` says what to do."""

    def __init__(self, message: str, mend: str = "") -> None:
        super().__init__(message)
        self.mend = mend


@dataclass(frozen=True, eq=False, slots=True)
class Direction:
    """A direction of Euclidean length 1, [d]; ``vector`` is None where its file is not there."""

    source: str  # as the rule names it: directions/deception.safetensors#qwen7b_l20
    file: Path
    vector: Vector | None
    digest: str = ""  # SHA-256 of the vector's bytes


def read_direction(source: str, rule_file: str) -> Direction:
    """The direction a rule names as ``FILE#NAME``, FILE relative to the rule's own file.

    A file that is not there is no error: rules are shared without the directions of a model, and
    the selection is then unknown.

    Raises:
        DirectionError: a name of another form, a path that leaves the rule's directory, or a file
            that holds no such finite vector.
    """
    name, _, key = source.partition("#")
    if not key or not name.endswith(SUFFIX):
        raise DirectionError("direction is not FILE#NAME", f"write it as directions/x{SUFFIX}#name")
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name or "\\" in name:
        raise DirectionError("a direction must lie under its rule's directory", "move the file")
    file = Path(rule_file).parent / relative
    if not file.is_file():
        return Direction(source, file, None)
    vector = _unit(_tensor(file, key))
    return Direction(source, file, vector, hashlib.sha256(vector.tobytes()).hexdigest())


def _tensor(file: Path, key: str) -> torch.Tensor:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise DirectionError(f"its file is larger than {MAX_FILE_BYTES} bytes", "split it")
        with safetensors.safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            if key not in names:
                known = ", ".join(sorted(names)[:8]) or "none"
                raise DirectionError(f"its file has no vector {key[:64]!r}", f"known: {known}")
            shape = opened.get_slice(key).get_shape()
            if len(shape) != 1 or not 1 <= shape[0] <= MAX_WIDTH:
                raise DirectionError(f"it has the shape {shape}, not [d]", "store one vector")
            tensor: torch.Tensor = opened.get_tensor(key)
            return tensor
    except (OSError, safetensors.SafetensorError) as error:
        raise DirectionError(f"its file cannot be read: {type(error).__name__}") from error


def _unit(tensor: torch.Tensor) -> Vector:
    if not tensor.is_floating_point():
        raise DirectionError("it does not hold floating-point numbers", "store it as float32")
    vector: Vector = tensor.to(torch.float64).numpy()
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        raise DirectionError("it has no direction: zero, or not finite", "make it again")
    return vector / length
