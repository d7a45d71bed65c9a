"""A cheap, stable name for the weights in a directory."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from nae_monitor.models.cache import model_error

MAX_HEADER_BYTES = 100 * 1024 * 1024  # the safetensors format's own limit
_VOLATILE = ("_name_or_path", "_model_name_or_path", "transformers_version")


def fingerprint(directory: Path) -> str:
    """SHA-256 over config.json and the size and header of every safetensors file.

    Tensor data is not read: two fine-tunes of one shape share a fingerprint. Fields that say where
    and by what version a file was written are left out.

    Raises:
        ModelError: a file is missing, truncated or not safetensors.
    """
    digest = hashlib.sha256()
    digest.update(_config(directory / "config.json"))
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise model_error(directory, "holds no safetensors weights", "only safetensors is read")
    for path in weights:
        digest.update(f"{path.name}:{path.stat().st_size}:".encode())
        digest.update(_header(path))
    return digest.hexdigest()


def _config(path: Path) -> bytes:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise model_error(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise model_error(path, "is not valid JSON", "fetch the model again") from error
    if not isinstance(config, dict):
        raise model_error(path, "is not a JSON object", "fetch the model again")
    kept = {key: value for key, value in config.items() if key not in _VOLATILE}
    return json.dumps(kept, sort_keys=True).encode()


def _header(path: Path) -> bytes:
    """The JSON header (https://huggingface.co/docs/safetensors: 8 bytes of length, then JSON)."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise model_error(path, "is truncated or not safetensors", "fetch the model again")
        header = stream.read(length)
    try:
        tensors = json.loads(header)
        end = max((t["data_offsets"][1] for n, t in tensors.items() if n != "__metadata__"))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise model_error(path, "has a broken safetensors header", "fetch it again") from error
    if 8 + length + end != size:
        raise model_error(path, "is truncated", "fetch the model again")
    return header
