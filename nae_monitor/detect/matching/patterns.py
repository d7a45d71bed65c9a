"""Every pattern of many regex selections tried in one pass (RE2::Set)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import re2

# What a set's automaton may hold: RE2 shares it between the program and its states. Bounded, so
# that no rule set can take the machine's memory.
BASE_BYTES, BYTES_PER_PATTERN, MAX_BYTES = 16 << 20, 128 << 10, 512 << 20
CANARY = 0  # the empty pattern, which is in every answer of a set that worked


class PatternSetError(Exception):
    """The set gave no answer; RE2 tells a failure from "no match" in no other way."""


class PatternSet:
    """Which of many patterns a text matches; where they match is found by searching for those.

    Patterns that RE2 takes one by one and not together, and those named in ``alone``, are left out
    of the set and always searched for (:attr:`left_out`).
    """

    def __init__(
        self, patterns: Sequence[str], *, case: bool, alone: Collection[int] = frozenset()
    ) -> None:
        self.left_out: list[int] = list(alone)
        together = [number for number in range(len(patterns)) if number not in alone]
        self._sets = list(self._build(patterns, together, case))

    def _build(
        self, patterns: Sequence[str], numbers: Sequence[int], case: bool
    ) -> Iterator[tuple[Any, Sequence[int]]]:
        """Sets over all of ``numbers``, halved as often as it takes to compile them."""
        if not numbers:
            return
        compiled = _compiled([patterns[number] for number in numbers], case)
        if compiled is not None:
            yield compiled, numbers
        elif len(numbers) == 1:
            self.left_out.extend(numbers)
        else:
            middle = len(numbers) // 2
            yield from self._build(patterns, numbers[:middle], case)
            yield from self._build(patterns, numbers[middle:], case)

    def find(self, text: str) -> list[int]:
        """The numbers of the patterns that match ``text``, and of those left out, ascending.

        Raises:
            PatternSetError: a set failed.
        """
        found = list(self.left_out)
        encoded = text.encode()
        for compiled, numbers in self._sets:
            answer = compiled.Match(encoded)
            if not answer or CANARY not in answer:
                raise PatternSetError
            found.extend(numbers[number - 1] for number in answer if number != CANARY)
        return sorted(found)


def _compiled(patterns: Sequence[str], case: bool) -> Any | None:
    """A set of the canary and ``patterns``; None where RE2 refuses them."""
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = case
    options.max_mem = min(BASE_BYTES + BYTES_PER_PATTERN * len(patterns), MAX_BYTES)
    compiled = re2.Set.SearchSet(options)
    try:
        for pattern in ("", *patterns):
            compiled.Add(pattern)
        compiled.Compile()
    except re2.error:
        return None
    return compiled
