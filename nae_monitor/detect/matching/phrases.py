"""Which of many fuzzy phrases a text can hold at all: those that share enough trigrams with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHARE = 0.50  # of a phrase's trigrams that must stand together in the text
TRIGRAMS_PER_EDIT = 4  # that one edit breaks at most: two letters that changed places
HASH_BITS = 14
BLOCKS = 8  # of a stretch of text; their counts are the bytes of one 64-bit sum
STRETCH_CHARS = 1_024
MAX_INDEXED_CHARS = 200  # of a phrase, so that a count fits its byte; longer ones are always scored

Codes = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase of a fuzzy selection under rapidfuzz's ``partial_ratio``; score 0..100."""

    text: str
    score: float
    exact: bool


class PhraseIndex:
    """Trigram counts of all phrases in all blocks of a text at once.

    Whatever a phrase is aligned with lies in one block, as blocks overlap by the longest phrase.
    Trigrams are hashed; two that fall together can only let a phrase through for nothing.
    """

    def __init__(self, phrases: Sequence[Phrase]) -> None:
        trigrams = [np.unique(_trigrams(phrase.text)) for phrase in phrases]
        needed = [_needed(p, len(grams)) for p, grams in zip(phrases, trigrams, strict=True)]
        self._always = [number for number, count in enumerate(needed) if count <= 0]
        kept = [number for number, count in enumerate(needed) if count > 0]
        self._numbers = np.array(kept, dtype=np.intp)
        self._needed = np.array([needed[number] for number in kept], dtype=np.uint8)
        sizes = [len(trigrams[number]) for number in kept]
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.intp)
        self._trigrams = np.concatenate([np.empty(0, np.intp), *(trigrams[n] for n in kept)])
        self._trigrams = self._trigrams.astype(np.intp)
        self._longest_chars = max((len(phrases[number].text) for number in kept), default=0)

    def candidates(self, text: str) -> list[int]:
        """The numbers of the phrases worth scoring against ``text``, ascending."""
        return [number for number, _, _ in self.places(text)]

    def places(self, text: str) -> list[tuple[int, int, int]]:
        """Each phrase worth scoring, ascending, with the start and end of where it may be.

        What :func:`rapidfuzz.fuzz.partial_ratio` aligns a phrase with in ``text`` lies between
        them, if it is there: a score there is at least that in the whole text.
        """
        found = [(number, 0, len(text)) for number in self._always]
        trigrams = _trigrams(text)
        if not len(self._numbers) or not len(trigrams):
            return found
        spans: dict[int, tuple[int, int]] = {}
        for start in range(0, len(trigrams), STRETCH_CHARS):
            stretch = trigrams[start : start + STRETCH_CHARS + self._longest_chars]
            for row, begin, end in self._held(stretch):
                # Stretches ascend, so the first that holds a phrase has its earliest place.
                spans[row] = spans.get(row, (start + begin,))[0], start + end
        for row, (begin, end) in spans.items():
            end = min(end, len(text))
            # No shorter than the phrase: partial_ratio slides the shorter text over the longer.
            begin = max(0, min(begin, end - self._longest_chars))
            found.append((int(self._numbers[row]), begin, end))
        return sorted(found)

    def _held(self, trigrams: Codes) -> Iterator[tuple[int, int, int]]:
        """The rows of phrases that share enough with a block, and from where to where they do."""
        stride = -(-min(len(trigrams), STRETCH_CHARS) // BLOCKS)
        enough = self._shared(trigrams, stride) >= self._needed[:, None]
        rows = np.flatnonzero(enough.view(np.uint64))
        held = enough[rows]
        begins = held.argmax(axis=1) * stride
        ends = (BLOCKS - held[:, ::-1].argmax(axis=1)) * stride + self._longest_chars
        yield from zip(rows.tolist(), begins.tolist(), ends.tolist(), strict=True)

    def _shared(self, trigrams: Codes, stride: int) -> NDArray[np.uint8]:
        """How many trigrams each phrase shares with each block [phrases, blocks]."""
        present = np.zeros((1 << HASH_BITS, BLOCKS), dtype=np.uint8)
        for block in range(BLOCKS):
            start = block * stride
            present[trigrams[start : start + stride + self._longest_chars], block] = 1
        found = present.view(np.uint64).ravel().take(self._trigrams)
        counts = np.add.reduceat(found, self._starts)
        return counts.view(np.uint8).reshape(-1, BLOCKS)


def _trigrams(text: str) -> Codes:
    """The hash of each trigram of ``text``, in order."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if len(codes) < 3:
        return codes[:0]
    mixed = codes[:-2] * np.uint32(0x9E3779B1)
    mixed ^= codes[1:-1] * np.uint32(0x85EBCA6B)
    mixed += codes[2:] * np.uint32(0xC2B2AE35)
    mixed *= np.uint32(0x27D4EB2F)
    return mixed >> np.uint32(32 - HASH_BITS)


def _needed(phrase: Phrase, trigrams: int) -> int:
    """How many of the phrase's ``trigrams`` a text must hold; 0 or less: it is always scored."""
    length = len(phrase.text)
    if length > MAX_INDEXED_CHARS:
        return 0
    if phrase.exact:
        return trigrams - most_lost(length, phrase.score)
    edits = math.floor(length * (1 - phrase.score / 100) + 1e-9)
    return min(math.ceil(SHARE * trigrams), trigrams - TRIGRAMS_PER_EDIT * edits)


def most_lost(length: int, score: float) -> int:
    """How many trigrams of a phrase of ``length`` characters an alignment at ``score`` can lack.

    ``partial_ratio`` scores 200 L / (length + width) for a stretch of ``width`` <= ``length``
    characters with L of them in common. A phrase character left out breaks three trigrams, a text
    character put in between breaks two.
    """
    most = 0
    for width in range(length + 1):
        common = math.ceil(score * (length + width) / 200 - 1e-9)
        if common <= width:
            most = max(most, 3 * (length - common) + 2 * (width - common))
    return most
