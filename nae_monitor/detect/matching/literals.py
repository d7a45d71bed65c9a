"""Every literal of many keyword selections found in one pass (Aho-Corasick)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import ahocorasick

from nae_monitor.detect.text import is_word_edge
from nae_monitor.detect.views import Hit

# Literals that end in one another (a, aa, aaa) can occur far more often than a text has
# characters; a pass over them stops here.
HITS_PER_CHARACTER, MIN_HITS = 4, 20_000


class OverBudgetError(Exception):
    """The text holds so many occurrences that not all were looked at: the answer is unknown."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A word of a keyword selection; ``word``: it counts as a whole word only."""

    text: str
    word: bool


class LiteralIndex:
    """All literals in one automaton (pyahocorasick: its search is lazy, so it can be stopped)."""

    def __init__(self, literals: Iterable[Literal]) -> None:
        forms: dict[str, tuple[Literal | None, Literal | None]] = {}
        for literal in literals:
            whole, part = forms.get(literal.text, (None, None))
            if literal.word:
                whole = literal
            else:
                part = literal
            forms[literal.text] = whole, part
        self._automaton = ahocorasick.Automaton()
        for text, found in forms.items():
            self._automaton.add_word(text, (len(text), *found))
        self._automaton.make_automaton()

    def find(self, text: str) -> dict[Literal, Hit]:
        """The first place of each literal that ``text`` (normalised) holds.

        Raises:
            OverBudgetError: it holds too many to look at them all.
        """
        found: dict[Literal, Hit] = {}
        budget = max(MIN_HITS, HITS_PER_CHARACTER * len(text))
        for last, (length, whole, part) in self._automaton.iter(text):
            end = last + 1
            start = end - length
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
