"""Meaning: cosine of a sentence against exemplars and against what they are easily taken for.

A sentence matches where its best exemplar reaches the threshold and beats its best negative by the
margin. Without an encoder, or with one that fails, the answer is unknown.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from nae_monitor.detect.text import sentences
from nae_monitor.detect.views import Hit
from nae_monitor.errors import ConfigurationError
from nae_monitor.health import Health

MAX_SENTENCES = 32  # of one field; more are left unread and "no match" becomes unknown
CACHED_SENTENCES = 2_048
COMPONENT = "detect.encoder"  # the name under which Health counts encoder failures
_UNIT_TOLERANCE = 1e-2

Matrix = NDArray[np.float32]


class Encoder(Protocol):
    """Turns texts into comparable vectors."""

    def encode(self, texts: Sequence[str]) -> Any:
        """An array [n, e] of float, one row a text, each of Euclidean length 1.

        May block (tens of milliseconds on a CPU); may raise, which is counted and makes the
        selections that asked unknown.
        """
        ...


@dataclass(frozen=True, slots=True)
class SemanticMatcher:
    """What a selection compares with. Cosines are -1..1."""

    exemplars: tuple[str, ...]
    negatives: tuple[str, ...]
    threshold: float
    margin: float
    granularity: Literal["sentence", "full"]
    cost: ClassVar[int] = 3

    def stretches(self, text: str) -> list[tuple[int, int]]:
        """The stretches of ``text`` that are compared, in order."""
        if self.granularity == "sentence":
            return sentences(text)
        return [(0, len(text))] if text.strip() else []


class Embedder:
    """An encoder behind a cache and the host boundary.

    Texts are encoded one at a time: the padding of a batch moves the last digits of a vector, and
    a replay must find the same figures whatever was judged before.
    """

    def __init__(self, encoder: Encoder, health: Health) -> None:
        self._encoder = encoder
        self._health = health
        self._cache: OrderedDict[str, Matrix] = OrderedDict()

    def prepare(self, texts: Sequence[str]) -> Matrix:
        """Vectors [n, e] of a rule's own sentences, at start-up.

        Raises:
            ConfigurationError: the encoder failed; a monitor must not start on it.
        """
        try:
            return np.concatenate([_checked(self._encoder.encode([text])) for text in texts])
        except Exception as error:
            message = f"the sentence encoder failed on a rule's exemplars: {type(error).__name__}"
            raise ConfigurationError(f"{message}: {error}") from error

    def embed(self, text: str) -> Matrix | None:
        """The vector [1, e] of ``text``; None where the encoder failed or is switched off."""
        cached = self._cache.get(text)
        if cached is not None:
            return cached
        if self._health.is_open(COMPONENT):
            return None
        vector: Matrix | None = None
        with self._health.guard(COMPONENT):
            vector = _checked(self._encoder.encode([text]))
        if vector is not None:
            self._cache[text] = vector
            while len(self._cache) > CACHED_SENTENCES:
                self._cache.popitem(last=False)
        return vector


def _checked(vectors: Any) -> Matrix:
    matrix = np.asarray(vectors, dtype=np.float32)
    if matrix.ndim != 2 or matrix.shape[0] != 1:
        raise ValueError(f"encoder returned shape {matrix.shape} for one text")
    lengths = np.linalg.norm(matrix, axis=1)
    if not bool(np.all(np.abs(lengths - 1) <= _UNIT_TOLERANCE)):  # false for NaN too
        raise ValueError("encoder returned vectors that are not of length 1")
    return matrix


@dataclass(frozen=True, eq=False, slots=True)
class Comparison:
    """A semantic selection with its sentences encoded, one row a sentence [n, e]."""

    matcher: SemanticMatcher
    exemplars: Matrix
    negatives: Matrix | None
    embedder: Embedder

    @classmethod
    def of(cls, matcher: SemanticMatcher, embedder: Embedder) -> Comparison:
        """Encode the selection's own sentences; errors as :meth:`Embedder.prepare`."""
        negatives = embedder.prepare(matcher.negatives) if matcher.negatives else None
        return cls(matcher, embedder.prepare(matcher.exemplars), negatives, embedder)

    def find(self, text: str) -> tuple[list[Hit], str]:
        """The hits, and why the rest is unknown ("" where everything was compared)."""
        stretches = self.matcher.stretches(text)
        hits: list[Hit] = []
        for start, end in stretches[:MAX_SENTENCES]:
            vector = self.embedder.embed(text[start:end].strip())
            if vector is None:
                return hits, "the sentence encoder failed"
            score = self._score(vector)
            if score is not None:
                hits.append(Hit(start, end, score))
        return hits, "" if len(stretches) <= MAX_SENTENCES else f"over {MAX_SENTENCES} sentences"

    def _score(self, vector: Matrix) -> float | None:
        # Rounded before it is compared, so that the figure shown is the figure decided on.
        best = round(float((vector @ self.exemplars.T).max()), 4)
        if best < self.matcher.threshold:
            return None
        if self.negatives is not None:
            other = round(float((vector @ self.negatives.T).max()), 4)
            if round(best - other, 4) < self.matcher.margin:
                return None
        return best
