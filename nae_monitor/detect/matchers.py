"""Matchers over one normalised text: keywords, RE2 patterns and fuzzy phrases.

Each is compiled when its rule loads and looks at one view by itself. They share ``find``, which
answers with hits (none: no match); :mod:`nae_monitor.detect.matching` gives the same answers for
all rules in one pass.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import re2
from rapidfuzz import fuzz

from nae_monitor.detect.text import folded, is_word_edge, word_shadow
from nae_monitor.detect.views import Hit

MAX_PATTERN_CHARS = 100_000
# RE2's program and its caches, for each pattern: a text can make it fill them. A pattern gets the
# larger amount only where its program needs that.
REGEX_BYTES, MAX_REGEX_BYTES = 512 * 1024, 4 * 1024 * 1024
# Instructions times characters: RE2 is linear in the text, but where its automaton outgrows its
# memory every character can cost as much as the pattern has instructions. One or two seconds.
MAX_PATTERN_WORK = 200_000_000
FuzzyScorer = Literal["partial_ratio", "ratio", "token_sort_ratio", "token_set_ratio"]

# What can name a character beyond ASCII: properties, code points, classes of either kind.
_BEYOND_ASCII = re.compile(r"\\[pPxC0-7]|\[:")
_EMPTY_PROBES = ("", "a", "a b", ".", "\n")


class TextMatcher(Protocol):
    """Finds something in normalised text. Pure: no state, no input but the text."""

    # Cheap matchers are asked first: 0 literals, 1 patterns, 2 fuzzy phrases, 3 meaning.
    cost: ClassVar[int]

    def find(self, text: str) -> list[Hit]:
        """The hits in ``text``; an empty list is "no match"."""
        ...


class PatternError(ValueError):
    """A pattern RE2 cannot take; ``code`` is the lint code."""

    def __init__(self, message: str, mend: str, code: str) -> None:
        super().__init__(message)
        self.mend, self.code = mend, code


@dataclass(frozen=True, slots=True)
class KeywordMatcher:
    """Literal words: one of ``any_of`` (where given) and every one of ``all_of``.

    The words are normalised as the text is; with ``word`` they match whole words only.
    """

    any_of: tuple[str, ...]
    all_of: tuple[str, ...]
    word: bool
    cost: ClassVar[int] = 0

    def find(self, text: str) -> list[Hit]:
        """The first place of each word found."""
        return self.answer(lambda word: self._first(text, word))

    def answer(self, first: Callable[[str], Hit | None]) -> list[Hit]:
        """The hits, given the first place of each word."""
        required = [first(word) for word in self.all_of]
        optional = [first(word) for word in self.any_of]
        if None in required or (self.any_of and not any(optional)):
            return []
        return [hit for hit in (*required, *optional) if hit is not None]

    def _first(self, text: str, word: str) -> Hit | None:
        place = text.find(word)
        while place >= 0:
            end = place + len(word)
            if not self.word or (is_word_edge(text, place) and is_word_edge(text, end)):
                return Hit(place, end)
            place = text.find(word, place + 1)
        return None


@dataclass(frozen=True, slots=True)
class RegexMatcher:
    r"""RE2 patterns, any of which may match.

    RE2's ``\b`` and ``\w`` know ASCII letters only, so patterns read the text's shadow, where they
    are right for every script; a pattern that itself speaks of other characters reads the text.
    """

    patterns: tuple[Any, ...]
    readable_chars: int = field(init=False)  # of a text, by every pattern
    program: int = field(init=False)  # RE2 instructions of all patterns
    cost: ClassVar[int] = 1

    def __post_init__(self) -> None:
        least = min((readable_chars(p) for p in self.patterns), default=MAX_PATTERN_WORK)
        object.__setattr__(self, "readable_chars", least)
        object.__setattr__(self, "program", sum(int(p.programsize) for p in self.patterns))

    def find(self, text: str) -> list[Hit]:
        """The first match of each pattern."""
        found = (search_pattern(pattern, text) for pattern in self.patterns)
        return [hit for hit in found if hit is not None]


def search_pattern(pattern: Any, text: str) -> Hit | None:
    """The first match of a compiled pattern in ``text``, or in as much of it as it may read."""
    limit = readable_chars(pattern)
    read = text[:limit]
    match = pattern.search(word_shadow(read) if reads_shadow(pattern.pattern) else read)
    # A match up to the cut may be one only because the text was cut there ($, \b).
    if match is None or (match.end() == limit < len(text)):
        return None
    return Hit(match.start(), match.end())


def readable_chars(pattern: Any) -> int:
    """How much of a text a compiled pattern may be tried on, so that it ends in bounded time."""
    return MAX_PATTERN_WORK // max(1, int(pattern.programsize))


@functools.lru_cache(maxsize=4096)
def reads_shadow(pattern: str) -> bool:
    """Whether the pattern speaks of ASCII characters only."""
    return pattern.isascii() and _BEYOND_ASCII.search(pattern) is None


def compile_pattern(pattern: str, case: bool) -> Any:
    """Compile for RE2 with bounded memory; letters match either case unless ``case``.

    Raises:
        PatternError: too long, not RE2 (NM201), or able to match nothing at all (NM202).
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        message = f"pattern of {len(pattern)} characters; at most {MAX_PATTERN_CHARS}"
        raise PatternError(message, "split it", "NM201")
    pattern = unicodedata.normalize("NFC", pattern)
    _refuse_unmatchable(pattern, case)
    try:
        try:
            compiled = _compiled(pattern, case, REGEX_BYTES)
        except re2.error:
            compiled = _compiled(pattern, case, MAX_REGEX_BYTES)
    except (re2.error, UnicodeError) as error:
        message = f"RE2 refuses the pattern: {_reason(error)}"
        raise PatternError(message, _mend(pattern, message), "NM201") from error
    matches = (compiled.search(probe) for probe in _EMPTY_PROBES)
    if any(match is not None and match.start() == match.end() for match in matches):
        raise PatternError("the pattern matches empty text", "require a character", "NM202")
    return compiled


def _compiled(pattern: str, case: bool, max_bytes: int) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = max_bytes
    options.never_capture = True  # groups cost memory for each and nobody reads them
    options.case_sensitive = case
    return re2.compile(pattern, options)


def _refuse_unmatchable(pattern: str, case: bool) -> None:
    """A letter that normalised text spells otherwise would make a pattern that never fires."""
    for character in sorted(set(pattern)):
        if character.isascii():
            continue
        plain = folded(character, case=case)
        if plain not in (character, character.lower()):
            message = f"normalised text never holds {character!r}"
            mend = f"write {plain!r}" if plain else "leave it out"
            raise PatternError(message, mend, "NM201")


def _reason(error: Exception) -> str:
    detail = error.args[0] if error.args else ""
    text = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
    return text[:200] or type(error).__name__


def _mend(pattern: str, message: str) -> str:
    if "too large" in message:
        return f"compiled it needs more than {MAX_REGEX_BYTES >> 20} MiB: split it, or repeat less"
    if any(mark in pattern for mark in ("(?=", "(?!", "(?<=", "(?<!")):
        return "RE2 has no look-around: use a second selection and `not`"
    return ""


@dataclass(frozen=True, slots=True)
class FuzzyMatcher:
    """Phrases that may be misspelt: a rapidfuzz score (0..100) of at least ``score``."""

    phrases: tuple[str, ...]
    score: float
    scorer: FuzzyScorer
    exact: bool = False  # what is left out before scoring is proved, not measured, to miss nothing
    cost: ClassVar[int] = 2

    def find(self, text: str) -> list[Hit]:
        """The best stretch of each phrase that reaches the score."""
        found = (fuzzy_hit(phrase, text, self.score, self.scorer) for phrase in self.phrases)
        return [hit for hit in found if hit is not None]


def fuzzy_hit(phrase: str, text: str, score: float, scorer: FuzzyScorer) -> Hit | None:
    """The best stretch of ``text`` for ``phrase``, None where it stays under ``score``."""
    # partial_ratio slides the shorter text over the longer: on a text shorter than the phrase it
    # would find any fragment of the phrase, so there the two are compared whole.
    if scorer == "partial_ratio" and len(text) >= len(phrase):
        found = fuzz.partial_ratio_alignment(phrase, text, score_cutoff=score)
        if found is None:
            return None
        return Hit(found.dest_start, found.dest_end, round(found.score, 2))
    name = "ratio" if scorer == "partial_ratio" else scorer
    figure = float(getattr(fuzz, name)(phrase, text, score_cutoff=score))
    return Hit(0, len(text), round(figure, 2)) if figure >= score else None
