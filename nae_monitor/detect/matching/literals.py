"""Every literal of many keyword selections found in one pass (Aho-Corasick)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ahocorasick_rs import AhoCorasick, MatchKind

from nae_monitor.detect.text import is_word_edge
from nae_monitor.detect.views import Hit

# Literals that end in one another (a, aa, aaa) can occur far more often than a text has
# characters; a pass over them stops here.
HITS_PER_CHARACTER, MIN_HITS = 4, 20_000
PIECE_CHARS = 1_024  # of a text, looked at in one call: so many occurrences are held at most


class OverBudgetError(Exception):
    """The text holds so many occurrences that not all were looked at: the answer is unknown."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A word of a keyword selection; ``word``: it counts as a whole word only."""

    text: str
    word: bool


class LiteralIndex:
    """All literals in one automaton, which is taken over a text piece by piece."""

    def __init__(self, literals: Iterable[Literal]) -> None:
        forms: dict[str, tuple[Literal | None, Literal | None]] = {}
        for literal in literals:
            whole, part = forms.get(literal.text, (None, None))
            if literal.word:
                whole = literal
            else:
                part = literal
            forms[literal.text] = whole, part
        self._forms = list(forms.values())
        self._longest_chars = max(map(len, forms), default=0)
        # Standard: every occurrence, also of literals inside others.
        self._automaton = AhoCorasick(list(forms), MatchKind.Standard, store_patterns=False)

    def find(self, text: str) -> dict[Literal, Hit]:
        """The first place of each literal that ``text`` (normalised) holds.

        Raises:
            OverBudgetError: it holds too many to look at them all.
        """
        found: dict[Literal, Hit] = {}
        budget = max(MIN_HITS, HITS_PER_CHARACTER * len(text))
        for number, start, end in self._occurrences(text):
            whole, part = self._forms[number]
            if part is not None and part not in found:
                found[part] = Hit(start, end)
            if (
                whole is not None
                and whole not in found
                and is_word_edge(text, end)
                and is_word_edge(text, start)
            ):
                found[whole] = Hit(start, end)
            budget -= 1
            if budget < 0:
                raise OverBudgetError
        return found

    def _occurrences(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Which form, its start and its end, by ascending end; pieces overlap by the longest."""
        for begin in range(0, max(1, len(text)), PIECE_CHARS):
            before = max(0, begin - self._longest_chars + 1)
            piece = text[before : begin + PIECE_CHARS]
            for number, start, end in self._automaton.find_matches_as_indexes(
                piece, overlapping=True
            ):
                if before + end > begin:  # else it ended in the piece before
                    yield number, before + start, before + end
