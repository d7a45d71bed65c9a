"""The selections of one kind that look at one view, answered together.

A part answers for a whole text at once: the hits of each selection that has any.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from rapidfuzz import fuzz

from nae_monitor.detect.matchers import (
    FuzzyMatcher,
    KeywordMatcher,
    RegexMatcher,
    fuzzy_hit,
    readable_chars,
    reads_shadow,
    search_pattern,
)
from nae_monitor.detect.matching.literals import Literal, LiteralIndex, OverBudgetError
from nae_monitor.detect.matching.patterns import PatternSet
from nae_monitor.detect.matching.phrases import Phrase, PhraseIndex
from nae_monitor.detect.text import word_shadow
from nae_monitor.detect.views import MAX_FIELD_CHARS, Hit

# Characters of a text times RE2 instructions, or times characters of phrases, that one text may
# cost; some seconds where every step is as dear as it can be. Beyond it the answer is unknown.
MAX_WORK = 4_000_000_000
MIN_PHRASE_WORK = 64  # scorers of whole texts sort the words of the text for each phrase

Slot = tuple[str, str]  # rule id and selection name
Found = Mapping[Slot, list[Hit]]
Key = TypeVar("Key", bound=Hashable)


def work_alone(matcher: object) -> int:
    """What a character of a text may cost a matcher by itself, in the units of ``MAX_WORK``."""
    match matcher:
        case KeywordMatcher():
            return len(matcher.all_of) + len(matcher.any_of)
        case RegexMatcher():
            return matcher.program
        case FuzzyMatcher():
            return sum(max(MIN_PHRASE_WORK, len(phrase)) for phrase in matcher.phrases)
    return 0


class Part(Protocol):
    """All selections of one kind over one view."""

    @property
    def component(self) -> str:
        """The name under which Health counts its failures."""

    def find(self, text: str) -> Found:
        """The hits of every selection that matches; the others are absent. May raise."""


def _owners(pairs: Iterable[tuple[Key, Slot]]) -> dict[Key, list[Slot]]:
    found: defaultdict[Key, list[Slot]] = defaultdict(list)
    for key, slot in pairs:
        found[key].append(slot)
    return dict(found)


def _touched(found: Iterable[Key], owners: Mapping[Key, list[Slot]]) -> Iterable[Slot]:
    """The selections that own any of what was found, each once."""
    return dict.fromkeys(slot for key in found for slot in owners[key])


class KeywordPart:
    """Keyword selections: one automaton over all their words."""

    component = "detect.literals"

    def __init__(self, matchers: Mapping[Slot, KeywordMatcher]) -> None:
        self._matchers = matchers
        self._owners = _owners(
            (Literal(word, matcher.word), slot)
            for slot, matcher in matchers.items()
            for word in dict.fromkeys((*matcher.all_of, *matcher.any_of))
        )
        self._index = LiteralIndex(self._owners)

    def find(self, text: str) -> Found:
        """See :class:`Part`.

        Raises:
            OverBudgetError: the text holds too many of the words.
        """
        first = self._index.find(text)
        found = {slot: self._answer(slot, first) for slot in _touched(first, self._owners)}
        return {slot: hits for slot, hits in found.items() if hits}

    def _answer(self, slot: Slot, first: Mapping[Literal, Hit]) -> list[Hit]:
        matcher = self._matchers[slot]
        return matcher.answer(lambda word: first.get(Literal(word, matcher.word)))


class RegexPart:
    """Regex selections: sets say which patterns match, and those are searched for their places."""

    component = "detect.patterns"

    def __init__(self, matchers: Mapping[Slot, RegexMatcher], *, case: bool) -> None:
        self._matchers = matchers
        self._patterns: list[Any] = list(
            {p.pattern: p for matcher in matchers.values() for p in matcher.patterns}.values()
        )
        self._owners = _owners(
            (pattern.pattern, slot)
            for slot, matcher in matchers.items()
            for pattern in dict.fromkeys(matcher.patterns)
        )
        self._shadow = _SetOf(self._patterns, True, case)
        self._plain = _SetOf(self._patterns, False, case)

    def find(self, text: str) -> Found:
        """See :class:`Part`.

        Raises:
            PatternSetError: RE2 gave no answer.
            OverBudgetError: too many patterns match too far into the text.
        """
        places: dict[str, Hit] = {}
        work = 0
        for number in (*self._shadow.find(word_shadow(text)), *self._plain.find(text)):
            pattern = self._patterns[number]
            place = search_pattern(pattern, text)
            if place is not None:
                places[pattern.pattern] = place
            work += pattern.programsize * (len(text) if place is None else place.end)
            if work > MAX_WORK:
                raise OverBudgetError
        return {
            slot: [places[p.pattern] for p in self._matchers[slot].patterns if p.pattern in places]
            for slot in _touched(places, self._owners)
        }


class _SetOf:
    """The set over those patterns that read the shadow of a text, or over the others."""

    def __init__(self, patterns: Sequence[Any], shadow: bool, case: bool) -> None:
        texts = [pattern.pattern for pattern in patterns]
        self._numbers = [n for n, text in enumerate(texts) if reads_shadow(text) is shadow]
        # A set has no bound of its own on what a character costs, so the largest stay outside.
        alone = {
            place
            for place, number in enumerate(self._numbers)
            if readable_chars(patterns[number]) < MAX_FIELD_CHARS
        }
        self._set = PatternSet([texts[n] for n in self._numbers], case=case, alone=alone)

    def find(self, text: str) -> list[int]:
        return [self._numbers[number] for number in self._set.find(text)]


class FuzzyPart:
    """Fuzzy selections by ``partial_ratio``: only phrases that the text can hold are scored."""

    component = "detect.phrases"

    def __init__(self, matchers: Mapping[Slot, FuzzyMatcher]) -> None:
        self._matchers = matchers
        self._owners = _owners(
            (Phrase(phrase, matcher.score, matcher.exact), slot)
            for slot, matcher in matchers.items()
            for phrase in dict.fromkeys(matcher.phrases)
        )
        self._phrases = list(self._owners)
        self._index = PhraseIndex(self._phrases)

    def find(self, text: str) -> Found:
        """See :class:`Part`.

        Raises:
            OverBudgetError: too many phrases may be in too long a text.
        """
        best: dict[Phrase, Hit] = {}
        places = self._index.places(text)
        if len(text) * sum(len(self._phrases[n].text) for n, _, _ in places) > MAX_WORK:
            raise OverBudgetError
        for number, start, end in places:
            phrase = self._phrases[number]
            # Most share letters with a stretch of the text and no more: scored there, they are out.
            if end - start < len(text) and not _may_hit(phrase, text[start:end]):
                continue
            hit = fuzzy_hit(phrase.text, text, phrase.score, "partial_ratio")
            if hit is not None:
                best[phrase] = hit
        return {slot: self._answer(slot, best) for slot in _touched(best, self._owners)}

    def _answer(self, slot: Slot, best: Mapping[Phrase, Hit]) -> list[Hit]:
        matcher = self._matchers[slot]
        phrases = (Phrase(text, matcher.score, matcher.exact) for text in matcher.phrases)
        return [best[phrase] for phrase in phrases if phrase in best]


def _may_hit(phrase: Phrase, stretch: str) -> bool:
    return fuzz.partial_ratio(phrase.text, stretch, score_cutoff=phrase.score) >= phrase.score
