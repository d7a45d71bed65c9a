"""Text made comparable once, with a map back to where every character came from.

Normalised text is NFKC(casefold(NFKC(t))) of the text without its ignorable characters (category
Cf, variation selectors, fillers), close to Unicode's NFKC_Casefold (UAX #31): ligatures, full
width forms and words split by zero-width characters compare equal to their plain spelling.
Look-alike letters of other scripts do not.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Quotes = Literal["any", "outside", "only"]
MAX_CLUSTER_CHARS = 32  # Unicode's stream-safe limit: bounds the cost of stacked accents (UAX #15)

_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
# Scripts written without spaces: each character may begin and end a word (UAX #29).
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
_CLOSING_QUOTE = {'"': '"', "“": "”", "«": "»"}
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
# Possessive and anchored to the start of a run, so that a page of full stops costs one pass.
_SENTENCE_END = re.compile(r"(?:(?<![.!?])[.!?]++[\"”»)]*+(?=\s|$)|[;\n。！？])\s*+")


@dataclass(frozen=True, slots=True)
class MappedText:
    """Text whose character i came from ``original[starts[i]:ends[i]]``."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """The stretch of the original that ``text[start:end]`` came from."""
        if start >= end:
            edge = self.starts[start] if start < len(self.starts) else (self.ends or [0])[-1]
            return edge, edge
        return self.starts[start], self.ends[end - 1]

    def part(self, pieces: Sequence[tuple[int, int]], joint: str = "") -> MappedText:
        """The given stretches one after the other, with ``joint`` between them."""
        texts: list[str] = []
        starts, ends = array("I"), array("I")
        for start, end in pieces:
            if texts and joint:
                texts.append(joint)
                starts.extend([ends[-1] if ends else 0] * len(joint))
                ends.extend([starts[-1]] * len(joint))
            texts.append(self.text[start:end])
            starts.extend(self.starts[start:end])
            ends.extend(self.ends[start:end])
        return MappedText("".join(texts), starts, ends)


def normalise(text: str, *, case: bool = False) -> MappedText:
    """Normalise ``text``; with ``case`` its upper and lower case are kept.

    Lone surrogates, which cannot be encoded, become U+FFFD.
    """
    if text.isascii():  # nothing to compose or strip: the common case costs one pass
        return MappedText(text if case else text.lower(), range(len(text)), range(1, len(text) + 1))
    pieces: list[str] = []
    starts, ends = array("I"), array("I")  # a tenth of what lists take: texts are kept for a while
    for cluster, start, end in _clusters(text):
        piece = unicodedata.normalize("NFKC", cluster)
        if not case:
            piece = unicodedata.normalize("NFKC", piece.casefold())
        pieces.append(piece)
        starts.extend([start] * len(piece))
        ends.extend([end] * len(piece))
    return MappedText("".join(pieces), starts, ends)


def folded(text: str, *, case: bool = False) -> str:
    """Normalised text without its map, for the patterns of a rule."""
    return normalise(text, case=case).text


def _clusters(text: str) -> Iterator[tuple[str, int, int]]:
    """Stretches that normalise independently of one another, without ignorable characters."""
    held: list[str] = []
    start = end = 0
    for place, character in enumerate(text):
        kind = _kind(character)
        if kind == "ignored":
            continue
        if held and (kind == "starts" or len(held) >= MAX_CLUSTER_CHARS):
            yield "".join(held), start, end
            held = []
        if not held:
            start = place
        held.append("\ufffd" if "\ud800" <= character <= "\udfff" else character)
        end = place + 1
    if held:
        yield "".join(held), start, end


@functools.lru_cache(maxsize=4096)
def _kind(character: str) -> Literal["ignored", "starts", "joins"]:
    if unicodedata.category(character) == "Cf" or _IGNORABLE.match(character):
        return "ignored"
    first = unicodedata.normalize("NFKD", character)[0]
    # Marks and the vowel and final letters of Hangul may compose with what stands before them.
    if unicodedata.category(first).startswith("M") or "\u1160" <= first <= "\u11ff":
        return "joins"
    return "starts"


def select_quotes(text: MappedText, quotes: Quotes) -> MappedText:
    """The text without what its quotation marks hold, or only that (joined by newlines).

    The marks themselves stay outside. A quotation that is never closed ends with its paragraph.
    """
    if quotes == "any":
        return text
    inside = _quoted(text.text)
    if quotes == "only":
        return text.part(inside, "\n")
    edges = [0, *(edge for stretch in inside for edge in stretch), len(text.text)]
    return text.part(list(zip(edges[::2], edges[1::2], strict=True)))


def _quoted(text: str) -> list[tuple[int, int]]:
    stretches: list[tuple[int, int]] = []
    for start, end in paragraphs(text):
        place = start
        while place < end:
            closing = _CLOSING_QUOTE.get(text[place])
            place += 1
            if closing is not None:
                close = text.find(closing, place, end)
                stop = end if close < 0 else close
                stretches.append((place, stop))
                place = stop + 1
    return stretches


def paragraphs(text: str) -> list[tuple[int, int]]:
    """The stretches between blank lines; empty ones are left out."""
    edges = [0, *(edge for gap in _PARAGRAPH.finditer(text) for edge in gap.span()), len(text)]
    return [
        (start, end)
        for start, end in zip(edges[::2], edges[1::2], strict=True)
        if text[start:end].strip()
    ]


def sentences(text: str) -> list[tuple[int, int]]:
    """The sentences, and clauses between semicolons, that hold at least two words.

    Where none does, the whole text counts as one sentence, if it holds any letter or digit.
    """
    edges = [0, *(edge for stop in _SENTENCE_END.finditer(text) for edge in stop.span()), len(text)]
    found = list(zip(edges[::2], edges[1::2], strict=True))
    kept = [(start, end) for start, end in found if len(text[start:end].split()) > 1]
    worded = [s for s in kept if any(character.isalnum() for character in text[s[0] : s[1]])]
    if worded:
        return worded
    return [(0, len(text))] if any(character.isalnum() for character in text) else []


def is_word_edge(text: str, place: int) -> bool:
    """Whether a word may begin or end between ``text[place - 1]`` and ``text[place]``."""
    if place <= 0 or place >= len(text):
        return True
    before, after = text[place - 1], text[place]
    if not (_in_word(before) and _in_word(after)):
        return True
    if unicodedata.category(after).startswith("M"):
        return False
    return bool(_UNSPACED.match(before) or _UNSPACED.match(after))


def word_shadow(text: str) -> str:
    """The text as an engine should see it whose ``\\b`` and ``\\w`` know ASCII letters only.

    Letters, digits and marks beyond ASCII become underscores, which such an engine takes for part
    of a word; scripts without spaces stay as they are, a boundary at every character. Offsets are
    those of ``text``.
    """
    return text if text.isascii() else text.translate(_SHADOWS)


class _Shadows:
    """What each character becomes in a shadow, by code point, as ``str.translate`` asks for it."""

    def __getitem__(self, code: int) -> int:
        return _shadow(code)


@functools.lru_cache(maxsize=4096)
def _shadow(code: int) -> int:
    character = chr(code)
    plain = code < 128 or bool(_UNSPACED.match(character)) or not _in_word(character)
    return code if plain else ord("_")


_SHADOWS = _Shadows()


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"
