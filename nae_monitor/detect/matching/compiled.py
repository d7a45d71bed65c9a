"""All text selections of a rule set, compiled so that each view is looked at once for all rules.

Selections are grouped by what they look at (field, quotes, case) and by kind: the literals of a
group are one automaton, its patterns one RE2 set, its fuzzy phrases one trigram index. The answers
are those of the selections' own matchers; a group that fails is counted and its selections are
asked one by one.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from nae_monitor.detect.matchers import (
    FuzzyMatcher,
    KeywordMatcher,
    RegexMatcher,
    TextMatcher,
)
from nae_monitor.detect.matching.literals import OverBudgetError
from nae_monitor.detect.matching.parts import (
    MAX_WORK,
    Found,
    FuzzyPart,
    KeywordPart,
    Part,
    RegexPart,
    Slot,
    work_alone,
)
from nae_monitor.detect.schema import Rule, Selection
from nae_monitor.detect.text import Quotes
from nae_monitor.detect.views import Hit, View
from nae_monitor.health import Health

CACHED_TEXTS = 16  # of each part: a request's prompt is matched once, not once a token
UNKNOWN_COUNTER = "rules.too_many_occurrences"
TOO_MUCH = "the text holds too many of the words"
ALONE_COUNTER = "rules.selections_asked_alone"

_Look = tuple[str, Quotes, bool]  # field, quotes, case: what one view is

# Answers a text selection: its hits, and why it is unknown ("" where it is not).
TextAnswerer = Callable[[Rule, Selection, View], tuple[list[Hit], str]]


def ask_matcher(rule: Rule, selection: Selection, view: View) -> tuple[list[Hit], str]:
    """Answer by the selection's own matcher: one rule, one look."""
    return cast(TextMatcher, selection.matcher).find(view.text), ""


class TextMatchers:
    """Answers the text selections of ``rules``; a :data:`TextAnswerer`. Safe to call from threads.

    Args:
        rules: what to compile; selections of other rules are answered by their own matcher.
        health: where failures go: ``failed.detect.literals`` (``.patterns``, ``.phrases``) with the
            exception's type, ``rules.selections_asked_alone`` for each selection that was then
            asked by itself, ``rules.too_many_occurrences`` for a text whose answer is unknown.
    """

    def __init__(self, rules: Iterable[Rule], health: Health) -> None:
        self._health = health
        self._scans: dict[Slot, _Scan] = {}
        rules = list(rules)
        works = {
            (rule.id, name): work_alone(selection.matcher)
            for rule in rules
            for name, selection in rule.selections.items()
        }
        for part, slots in parts_of(rules):
            scan = _Scan(part, health, sum(works[slot] for slot in slots))
            self._scans.update(dict.fromkeys(slots, scan))
        # Of those that no part answers for, all together.
        self._work_apart = sum(work for slot, work in works.items() if slot not in self._scans)

    def __call__(self, rule: Rule, selection: Selection, view: View) -> tuple[list[Hit], str]:
        """The hits of one selection, and why it is unknown ("" where it is not)."""
        slot = (rule.id, selection.name)
        scan = self._scans.get(slot)
        found, why = (None, "") if scan is None else scan(view.text)
        if why:
            return [], why
        if found is not None:
            return found.get(slot, []), ""
        if (self._work_apart if scan is None else scan.work_alone) * len(view.text) > MAX_WORK:
            self._health.count(UNKNOWN_COUNTER)
            return [], TOO_MUCH
        if scan is not None:
            self._health.count(ALONE_COUNTER)
        return ask_matcher(rule, selection, view)


class _Scan:
    """A part behind a cache and the host boundary."""

    def __init__(self, part: Part, health: Health, work_alone: int) -> None:
        self._part = part
        self.work_alone = work_alone  # of its selections, asked one by one
        self._health = health
        self._cached = functools.lru_cache(maxsize=CACHED_TEXTS)(self._find)

    def __call__(self, text: str) -> tuple[Found | None, str]:
        """What the part finds, None where it fails; and why that is unknown ("" if it is not)."""
        if self._health.is_open(self._part.component):
            return None, ""
        return self._cached(text)

    def _find(self, text: str) -> tuple[Found | None, str]:
        found: Found | None = None
        why = ""
        with self._health.guard(self._part.component):
            try:
                found = self._part.find(text)
            except OverBudgetError:
                self._health.count(UNKNOWN_COUNTER)
                why = TOO_MUCH
        return found, why


def parts_of(rules: Iterable[Rule]) -> Iterator[tuple[Part, Iterable[Slot]]]:
    """The parts of every view, with the selections that each answers for."""
    keywords: defaultdict[_Look, dict[Slot, KeywordMatcher]] = defaultdict(dict)
    regexes: defaultdict[_Look, dict[Slot, RegexMatcher]] = defaultdict(dict)
    phrases: defaultdict[_Look, dict[Slot, FuzzyMatcher]] = defaultdict(dict)
    for rule in rules:
        for name, selection in rule.selections.items():
            look, slot = (selection.field, selection.quotes, selection.case), (rule.id, name)
            match selection.matcher:
                case KeywordMatcher() as keyword:
                    keywords[look][slot] = keyword
                case RegexMatcher() as regex:
                    regexes[look][slot] = regex
                case FuzzyMatcher(scorer="partial_ratio") as fuzzy:
                    phrases[look][slot] = fuzzy
    yield from ((KeywordPart(found), found) for found in keywords.values())
    yield from ((RegexPart(found, case=look[2]), found) for look, found in regexes.items())
    yield from ((FuzzyPart(found), found) for found in phrases.values())
