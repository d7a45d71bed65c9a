"""How many trigrams of each of many phrases stand together in a block of a text.

The counts of eight blocks are the bytes of one 64-bit word, so that one addition counts in all
eight (SIMD within a register). A word that is compared holds ``128 - needed`` in each byte to begin
with: the byte's high bit is set where enough was counted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCKS = 8  # a word
MAX_COUNT = 127  # of trigrams of a phrase: more would run into the next byte
HASH_BITS = 14
CELL_CHARS = 8  # blocks begin and end with one
EACH_BYTE, HIGH_BITS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)

Codes = NDArray[np.intp]
Words = NDArray[np.uint64]


def trigram_codes(text: str) -> Codes:
    """The hash of each trigram of ``text``, in order; two may fall together."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if len(codes) < 3:
        return np.empty(0, np.intp)
    mixed = codes[:-2] * np.uint32(0x9E3779B1)
    mixed ^= codes[1:-1] * np.uint32(0x85EBCA6B)
    mixed += codes[2:] * np.uint32(0xC2B2AE35)
    mixed *= np.uint32(0x27D4EB2F)
    return (mixed >> np.uint32(32 - HASH_BITS)).astype(np.intp)


class Phrases:
    """The trigrams of many phrases, and how many of each a block must hold.

    Args:
        trigrams: of each phrase, distinct; at least one, at most ``MAX_COUNT``.
        needed: of each phrase; 0: any block will do.
    """

    def __init__(self, trigrams: Sequence[Codes], needed: Sequence[int]) -> None:
        self._codes = np.concatenate([np.empty(0, np.intp), *trigrams])
        self._sizes = np.array([len(codes) for codes in trigrams], dtype=np.intp)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._missing = (128 - np.array(needed, dtype=np.uint64)) * EACH_BYTE

    def __len__(self) -> int:
        return len(self._sizes)

    def only(self, rows: NDArray[np.intp]) -> Phrases:
        """Those of the phrases; ``rows`` are not none."""
        found = Phrases([], [])
        found._sizes, found._missing = self._sizes[rows], self._missing[rows]
        ends = found._sizes.cumsum()
        found._starts = ends - found._sizes
        places = np.repeat(self._starts[rows] - found._starts, found._sizes)
        places += np.arange(ends[-1])
        found._codes = self._codes.take(places)
        return found

    def held(self, text: Codes, stride: int, reach: int, words: int = 1) -> Words:
        """The blocks of a text, ``8 * words``, that hold enough of a phrase: [phrases, words].

        Block b has the trigrams that begin in the ``stride + reach`` characters from ``b * stride``
        on. In a block that holds enough, the high bit of its byte is set; all else is zero.
        """
        found = np.empty((len(self), words), dtype=np.uint64)
        masks = _masks(-(-len(text) // CELL_CHARS), stride, reach, words)
        for word in range(words):
            present = np.zeros(1 << HASH_BITS, dtype=np.uint64)
            np.bitwise_or.at(present, text, masks[word, : len(text)])
            counts = np.add.reduceat(present.take(self._codes), self._starts)
            counts += self._missing
            np.bitwise_and(counts, HIGH_BITS, out=found[:, word])
        return found


@functools.lru_cache(maxsize=256)
def _masks(cells: int, stride: int, reach: int, words: int) -> Words:
    """For the trigram at each character, a one in the byte of each block it is in: [words, chars].

    A cell that reaches into a block counts as in it: blocks may only be wider than asked for.
    """
    begins = np.arange(cells)[:, None] * CELL_CHARS
    starts = np.arange(BLOCKS * words)[None, :] * stride
    inside = (begins + CELL_CHARS > starts) & (begins < starts + stride + reach)
    by_word = np.ascontiguousarray(inside.astype(np.uint8).view(np.uint64).T)
    return np.repeat(by_word, CELL_CHARS, axis=1)
