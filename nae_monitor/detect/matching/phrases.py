"""Which of many fuzzy phrases a text can hold at all: those that share enough trigrams with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nae_monitor.detect.matching.blocks import (
    BLOCKS,
    CELL_CHARS,
    MAX_COUNT,
    Codes,
    Phrases,
    Words,
    trigram_codes,
)

SHARE = 0.50  # of a phrase's trigrams that must stand together in the text
STEPS = (4, 2)  # of the trigrams that are counted first; at 4, one edit breaks one of them
MIN_COUNTED = 9  # of a phrase; a shorter step where it would be fewer
FEW_PHRASES = 500  # a first count costs more than it saves
STRETCH_CHARS = 1_024
FINE_WORDS = 2  # of eight blocks, for the phrases that the first count leaves

Places = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]  # rows, begins, ends


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase of a fuzzy selection under rapidfuzz's ``partial_ratio``; score 0..100."""

    text: str
    score: float
    exact: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """How many of the counted trigrams an edit breaks at most, where every ``step``th counts."""

    step: int

    @property
    def left_out(self) -> int:
        """By a letter of the phrase that the text lacks: it is in three trigrams."""
        return -(-3 // self.step)

    @property
    def put_in(self) -> int:
        """By a letter between two of the phrase: it parts two trigrams."""
        return -(-2 // self.step)

    @property
    def exchanged(self) -> int:
        """By two letters that changed places: they are in four trigrams."""
        return -(-4 // self.step)


class PhraseIndex:
    """Trigram counts of all phrases in all blocks of a text at once.

    Every fourth trigram of most phrases is counted in wide blocks, beginning where they are rarest
    among the phrases, and what that leaves whole in narrow ones. Whatever a phrase is aligned with
    lies in one block, as blocks overlap by the longest phrase. Trigrams are hashed; two that fall
    together can only let a phrase through for nothing.
    """

    def __init__(self, phrases: Sequence[Phrase]) -> None:
        whole = [_counted(phrase, 1) for phrase in phrases]
        self._always = [n for n, (codes, count) in enumerate(whole) if _unbounded(codes, count)]
        kept = sorted(set(range(len(phrases))) - set(self._always))
        self._numbers = np.array(kept, dtype=np.intp)
        self._chars = np.array([len(phrases[number].text) for number in kept], dtype=np.intp)
        self._rows = np.arange(len(kept))
        self._longest_chars = int(self._chars.max(initial=0))
        self._whole = _phrases(whole[number] for number in kept)
        owners = Counter(code for codes, _ in whole for code in codes.tolist())
        self._sampled = _phrases(_rarest(phrases[number], owners) for number in kept)

    def candidates(self, text: str) -> list[int]:
        """The numbers of the phrases worth scoring against ``text``, ascending."""
        return [number for number, _, _ in self.places(text)]

    def places(self, text: str) -> list[tuple[int, int, int]]:
        """Each phrase worth scoring, ascending, with the start and end of where it may be.

        What :func:`rapidfuzz.fuzz.partial_ratio` aligns a phrase with in ``text`` lies between
        them, if it is there: a score there is at least that in the whole text.
        """
        found = [(number, 0, len(text)) for number in self._always]
        codes = trigram_codes(text)
        if not len(self._numbers) or not len(codes):
            return found
        held = [
            self._held(codes[start : start + STRETCH_CHARS + self._longest_chars], start)
            for start in range(0, len(codes), STRETCH_CHARS)
        ]
        rows, begins, ends = held[0] if len(held) == 1 else _joined(held)
        ends = np.minimum(ends, len(text))
        # No shorter than the phrase: partial_ratio slides the shorter text over the longer.
        begins = np.maximum(np.minimum(begins, ends - self._longest_chars), 0)
        numbers = self._numbers[rows]
        found += zip(numbers.tolist(), begins.tolist(), ends.tolist(), strict=True)
        return sorted(found)

    def _held(self, codes: Codes, start: int) -> Places:
        """The phrases that share enough with a block of the stretch that begins at ``start``."""
        chars = min(len(codes), STRETCH_CHARS)
        rows, phrases, reach = self._rows, self._whole, self._longest_chars
        if len(rows) > FEW_PHRASES:
            wide = -(-chars // BLOCKS)
            rows = _any(self._sampled.held(codes, wide, self._longest_chars))
            if not len(rows):
                return rows, rows, rows
            phrases, reach = self._whole.only(rows), int(self._chars[rows].max())
        stride = -(-chars // (BLOCKS * FINE_WORDS))
        reach = -(-reach // CELL_CHARS) * CELL_CHARS
        words = phrases.held(codes, stride, reach, FINE_WORDS)
        some = _any(words)
        held = (words[some] >> np.uint64(7)).view(bool)
        begins = held.argmax(axis=1) * stride + start
        ends = (held.shape[1] - held[:, ::-1].argmax(axis=1)) * stride + (start + reach)
        return rows[some], begins, ends


def _any(words: Words) -> NDArray[np.intp]:
    """The rows in which a word is not zero."""
    found = words[:, 0]
    for word in range(1, words.shape[1]):
        found = found | words[:, word]
    rows: NDArray[np.intp] = (found != 0).nonzero()[0]  # numpy is faster at booleans
    return rows


def _joined(held: Sequence[Places]) -> Places:
    """Each row once, from where the first stretch that holds it has it to where the last does."""
    rows, begins, ends = (np.concatenate(found) for found in zip(*held, strict=True))
    each, first = np.unique(rows, return_index=True)
    _, last = np.unique(rows[::-1], return_index=True)
    return each, begins[first], ends[::-1][last]


def _rarest(phrase: Phrase, owners: Mapping[int, int]) -> tuple[Codes, int]:
    """:func:`_counted` of some trigrams, beginning where those are in the fewest phrases."""
    fits = (step for step in STEPS if len(phrase.text) - 2 >= MIN_COUNTED * step)
    step = next(fits, 1)
    counted = [_counted(phrase, step, start) for start in range(step)]
    return min(counted, key=lambda one: np.mean([owners[code] for code in one[0].tolist()]))


def _counted(phrase: Phrase, step: int, start: int = 0) -> tuple[Codes, int]:
    """Every ``step``th trigram, each once, and how many of them a text must hold."""
    codes = np.unique(trigram_codes(phrase.text)[start::step])
    count, length, lost = len(codes), len(phrase.text), Lost(step)
    if phrase.exact:
        return codes, count - most_lost(length, phrase.score, lost)
    edits = math.floor(length * (1 - phrase.score / 100) + 1e-9)
    return codes, min(math.ceil(SHARE * count), count - lost.exchanged * edits)


def _unbounded(codes: Codes, needed: int) -> bool:
    """Whether a phrase is always scored: any text may hold enough, or its count has no room."""
    return needed <= 0 or len(codes) > MAX_COUNT


def _phrases(counted: Iterable[tuple[Codes, int]]) -> Phrases:
    found = list(counted)
    return Phrases([codes for codes, _ in found], [max(0, needed) for _, needed in found])


def most_lost(length: int, score: float, lost: Lost = Lost(1)) -> int:
    """How many counted trigrams of a phrase of ``length`` an alignment at ``score`` can lack.

    ``partial_ratio`` scores 200 L / (length + width) for a stretch of ``width`` <= ``length``
    characters with L of them in common.
    """
    most = 0
    for width in range(length + 1):
        common = math.ceil(score * (length + width) / 200 - 1e-9)
        if common <= width:
            broken = lost.left_out * (length - common) + lost.put_in * (width - common)
            most = max(most, broken)
    return most
