"""Made-up rules and texts: words of English frequency, rare words as literals, planted hits."""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from nae_monitor.detect.conditions import Name
from nae_monitor.detect.matchers import (
    FuzzyMatcher,
    KeywordMatcher,
    RegexMatcher,
    TextMatcher,
    compile_pattern,
)
from nae_monitor.detect.schema import Rule, Selection
from nae_monitor.records import Severity

TEXT_CHARS = 500
LITERALS, PATTERNS, PHRASES = 1_000, 200, 200
SCORE = 88.0
RULES = 100  # that share the patterns of a workload of size 1
ONSETS = ("b", "br", "c", "ch", "d", "f", "g", "gr", "h", "l", "m", "n", "p", "pl", "r", "s", "st")
VOWELS, CODAS = ("a", "e", "i", "o", "u", "ea"), ("", "n", "r", "s", "t", "nd", "l", "ck")
COMMON_TEXT = (
    "the model plans to answer with a list of user asks for help about how text says that it is "
    "expects next words prompt reply and then gives short formal question in topic code story"
)
COMMON = COMMON_TEXT.split()


@dataclass(frozen=True, slots=True)
class Workload:
    """What is looked for, as plain text; ``size`` is how many times the usual number."""

    literals: tuple[str, ...]
    patterns: tuple[str, ...]
    phrases: tuple[str, ...]
    size: int

    def rules(self) -> list[Rule]:
        """The same, as rules with a keyword, a regex and a fuzzy selection each."""
        step = RULES * self.size
        return [
            _rule(
                number,
                KeywordMatcher(self.literals[number::step], (), word=True),
                RegexMatcher(tuple(compile_pattern(p, False) for p in self.patterns[number::step])),
                FuzzyMatcher(self.phrases[number::step], SCORE, "partial_ratio"),
            )
            for number in range(step)
        ]


def _rule(number: int, *matchers: TextMatcher) -> Rule:
    names = ("words", "patterns", "phrases")
    found = {
        name: Selection(name, "explanation", "any", False, matcher)
        for name, matcher in zip(names, matchers, strict=True)
    }
    return Rule(
        id=f"{number:08d}",
        name=f"rule_{number}",
        title="",
        version="1",
        severity=Severity.LOW,
        selections=MappingProxyType(found),
        condition=Name("words"),
        file="",
        canonical={},
    )


def make_workload(size: int, seed: int) -> Workload:
    """``size`` times 1,000 literals, 200 patterns and 200 phrases."""
    chance = random.Random(seed)
    words = _vocabulary(chance, 2_000 * size)
    rare, known = words[len(words) // 4 :], words[: len(words) // 4]
    literals = (
        word if chance.random() < 0.7 else f"{word} {chance.choice(known)}"
        for word in itertools.cycle(rare)
    )
    patterns = (_pattern(chance, known) for _ in itertools.count())
    phrases = (
        " ".join(chance.choice(COMMON if chance.random() < 0.4 else known) for _ in range(5))
        for _ in itertools.count()
    )
    return Workload(
        _distinct(literals, LITERALS * size),
        _distinct(patterns, PATTERNS * size),
        _distinct(phrases, PHRASES * size),
        size,
    )


def make_texts(work: Workload, count: int, seed: int, *, planted: bool) -> list[str]:
    """Texts of 500 characters, some words in upper case; planted ones hold hits."""
    chance = random.Random(seed)
    words = _vocabulary(chance, 1_500)
    texts = []
    for number in range(count):
        found = [chance.choice(COMMON if chance.random() < 0.5 else words) for _ in range(120)]
        if planted:
            place = chance.randrange(40)
            found.insert(place, work.literals[chance.randrange(len(work.literals))])
            found.insert(place + 9, _spelt(work.patterns[number % len(work.patterns)]))
            phrase = work.phrases[chance.randrange(len(work.phrases))]
            found.insert(place + 18, edited(phrase, chance.randrange(4), chance))
        cased = (word.title() if chance.random() < 0.15 else word for word in found)
        texts.append(" ".join(cased)[:TEXT_CHARS])
    return texts


def edited(phrase: str, edits: int, chance: random.Random) -> str:
    """The phrase with letters replaced, left out, put in or exchanged."""
    letters = list(phrase)
    for _ in range(edits):
        place = chance.randrange(1, len(letters))
        kind = chance.randrange(4)
        if kind == 0:
            letters[place] = chance.choice(string.ascii_lowercase)
        elif kind == 1:
            del letters[place]
        elif kind == 2:
            letters.insert(place, chance.choice(string.ascii_lowercase))
        else:
            letters[place - 1], letters[place] = letters[place], letters[place - 1]
    return "".join(letters)


def _vocabulary(chance: random.Random, count: int) -> list[str]:
    def syllable() -> str:
        return chance.choice(ONSETS) + chance.choice(VOWELS) + chance.choice(CODAS)

    made = ("".join(syllable() for _ in range(chance.randint(2, 3))) for _ in itertools.count())
    return list(_distinct(made, count))


def _pattern(chance: random.Random, words: Sequence[str]) -> str:
    """A pattern of the shape rules use: two groups of words with a bounded gap."""
    a, b, c, d = (chance.choice(words) for _ in range(4))
    return rf"\b(?:{a}(?:s|ed|ing)?|{b}\w*)\b[^.\n]{{0,{chance.choice((30, 50))}}}\b(?:{c}|{d})s?\b"


def _spelt(pattern: str) -> str:
    """A text that such a pattern matches."""
    first = pattern.removeprefix(r"\b(?:").partition("(?:")[0]
    last = pattern.rpartition(r"\b(?:")[2].partition("|")[0]
    return f"{first}ed by {last}s"


def _distinct(made: Iterable[str], count: int) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for item in made:
        found[item] = None
        if len(found) == count:
            break
    return tuple(found)
