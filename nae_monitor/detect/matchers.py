"""Matchers over one normalised text: keywords, RE2 patterns and fuzzy phrases.

Each is compiled when its rule loads and looks at one view in one pass. They share ``find``, which
answers with hits (none: no match), so that a matcher over all rules at once can take their place.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import re2
from rapidfuzz import fuzz

from nae_monitor.detect.text import folded, is_word_edge
from nae_monitor.detect.views import Hit

MAX_PATTERN_CHARS = 2_000
MAX_REGEX_BYTES = 4 * 1024 * 1024  # RE2's program and its caches, for each pattern
FuzzyScorer = Literal["partial_ratio", "ratio", "token_sort_ratio", "token_set_ratio"]

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
        required = [self._first(text, word) for word in self.all_of]
        optional = [self._first(text, word) for word in self.any_of]
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
    r"""RE2 patterns, any of which may match. RE2's ``\b`` and ``\w`` know ASCII letters only."""

    patterns: tuple[Any, ...]
    cost: ClassVar[int] = 1

    def find(self, text: str) -> list[Hit]:
        """The first match of each pattern."""
        found = (pattern.search(text) for pattern in self.patterns)
        return [Hit(match.start(), match.end()) for match in found if match is not None]


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
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_REGEX_BYTES
    options.case_sensitive = case
    try:
        compiled = re2.compile(pattern, options)
    except (re2.error, UnicodeError) as error:
        raise PatternError(
            f"RE2 refuses the pattern: {_reason(error)}", _mend(pattern), "NM201"
        ) from error
    matches = (compiled.search(probe) for probe in _EMPTY_PROBES)
    if any(match is not None and match.start() == match.end() for match in matches):
        raise PatternError("the pattern matches empty text", "require a character", "NM202")
    return compiled


def _refuse_unmatchable(pattern: str, case: bool) -> None:
    """A letter that normalised text spells otherwise would make a pattern that never fires."""
    for character in pattern:
        plain = folded(character, case=case)
        if not character.isascii() and plain not in (character, character.lower()):
            message = f"normalised text never holds {character!r}"
            mend = f"write {plain!r}" if plain else "leave it out"
            raise PatternError(message, mend, "NM201")


def _reason(error: Exception) -> str:
    detail = error.args[0] if error.args else ""
    text = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
    return text[:200] or type(error).__name__


def _mend(pattern: str) -> str:
    if any(mark in pattern for mark in ("(?=", "(?!", "(?<=", "(?<!")):
        return "RE2 has no look-around: use a second selection and `not`"
    return ""


@dataclass(frozen=True, slots=True)
class FuzzyMatcher:
    """Phrases that may be misspelt: a rapidfuzz score (0..100) of at least ``score``."""

    phrases: tuple[str, ...]
    score: float
    scorer: FuzzyScorer
    cost: ClassVar[int] = 2

    def find(self, text: str) -> list[Hit]:
        """The best stretch of each phrase that reaches the score."""
        return [hit for phrase in self.phrases if (hit := self._best(phrase, text)) is not None]

    def _best(self, phrase: str, text: str) -> Hit | None:
        # partial_ratio slides the shorter text over the longer: on a text shorter than the phrase
        # it would find any fragment of the phrase, so there the two are compared whole.
        if self.scorer == "partial_ratio" and len(text) >= len(phrase):
            found = fuzz.partial_ratio_alignment(phrase, text, score_cutoff=self.score)
            if found is None:
                return None
            return Hit(found.dest_start, found.dest_end, round(found.score, 2))
        name = "ratio" if self.scorer == "partial_ratio" else self.scorer
        score = float(getattr(fuzz, name)(phrase, text, score_cutoff=self.score))
        return Hit(0, len(text), round(score, 2)) if score >= self.score else None
