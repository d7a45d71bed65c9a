"""Two ways to answer every selection of a workload for one text, and what they cost."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rapidfuzz import fuzz

from matching.workload import RULES, SCORE, Workload
from nae_monitor.detect.matching.compiled import parts_of
from nae_monitor.detect.text import normalise

# The literals, patterns and phrases that a text holds.
Holds = tuple[frozenset[str], frozenset[str], frozenset[str]]
# Texts that a way takes in a row: alone after each other's text, they would time cold caches.
WINDOW = 10
Way = Callable[[str], Holds]


def naive(work: Workload) -> Way:
    """The plain loop: one search of the standard library's ``re`` a pattern, one score a phrase.

    Letters match in either case, as rules mean them.
    """
    literals = [(word, re.compile(rf"\b{re.escape(word)}\b", re.I)) for word in work.literals]
    patterns = [(source, re.compile(source, re.I)) for source in work.patterns]

    def find(text: str) -> Holds:
        lower = text.lower()
        return (
            frozenset(word for word, pattern in literals if pattern.search(text)),
            frozenset(source for source, pattern in patterns if pattern.search(text)),
            frozenset(p for p in work.phrases if fuzz.partial_ratio(p, lower) >= SCORE),
        )

    return find


class Compiled:
    """The engine's way: its own parts, compiled from the rules, every hit with its place."""

    def __init__(self, work: Workload) -> None:
        rules = work.rules()
        started_s = time.perf_counter()
        self.parts = [part for part, _ in parts_of(rules)]
        self.build_s = time.perf_counter() - started_s

    def find(self, text: str) -> int:
        """How many selections the text hits; it is normalised, and nothing is cached."""
        return len(self.selections(text))

    def selections(self, text: str) -> frozenset[tuple[str, str]]:
        """The selections that the text hits: rule and name."""
        plain = normalise(text).text
        return frozenset(slot for part in self.parts for slot in part.find(plain))


def expected_selections(work: Workload, holds: Holds) -> frozenset[tuple[str, str]]:
    """The selections that own what the plain loop found."""
    step = RULES * work.size
    found = set()
    for name, sources, held in zip(
        ("words", "patterns", "phrases"),
        (work.literals, work.patterns, work.phrases),
        holds,
        strict=True,
    ):
        found |= {(f"{n % step:08d}", name) for n, source in enumerate(sources) if source in held}
    return frozenset(found)


def interleaved(
    ways: Mapping[str, Callable[[str], object]],
    texts: Sequence[str],
    warm_up: Sequence[str],
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, np.ndarray]:
    """Milliseconds of processor time [texts] of each way, the ways in turn on ten texts at a time.

    Processor time of this thread and not the clock's: one thread computes, and what else the
    machine does is not its cost. ``warm_up`` is run before and not counted: automata that grow as
    they meet text have done so in a monitor that has run for a second.
    """
    for way in ways.values():
        for text in warm_up:
            way(text)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for start in range(0, len(texts), WINDOW):
        window = texts[start : start + WINDOW]
        for name, way in ways.items():
            for text in window:
                started_s = time.thread_time()
                way(text)
                taken[name].append((time.thread_time() - started_s) * 1e3)
        report("texts", start + len(window), len(texts))
    return {name: np.array(found) for name, found in taken.items()}
