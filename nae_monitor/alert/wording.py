"""Matched stretches of text as a person reads them; machines get them whole, with their offsets."""

from __future__ import annotations

import math
import unicodedata

from nae_monitor.records import Finding

_CLOSER = {"(": ")", "[": "]", "{": "}", "“": "”", "‘": "’", "«": "»", "„": "“"}
_OPENERS = {closer: opener for opener, closer in _CLOSER.items()} | {"“": "„"}
_STRAIGHT = "\"'`"
_AFTER_QUOTATION = (";", ",", ":")  # a straight quotation mark before one of these closes
_OF_WORDS = "%#@&*_§"  # punctuation by their category, and yet a part of what they stand beside
_SIGNS = "-−.,"  # before a digit, part of a number


def matched_words(text: str) -> str:
    """A matched stretch without the punctuation and the white space around its words.

    Rules anchor on the form of an explanation (``"; harmful request, weapons:``), which says
    nothing to who reads the alert.
    """
    start, end = words_range(text)
    return text[start:end]


def unsupported_said(finding: Finding) -> str:
    """How likely the decode's theme is not true, and what it cost to know."""
    figure = finding.unsupported
    if figure is None or not math.isfinite(figure):
        return "P(unsupported) unknown"
    said = f"P(unsupported) {figure:.2f}"
    if finding.unsupported_decodes:
        said += f" for {finding.unsupported_decodes} decodes, {finding.unsupported_s:.1f} s"
    return said


def words_range(text: str) -> tuple[int, int]:
    """Where the words of ``text`` begin and end, in characters; all of it if it has none.

    Quotation marks and brackets stay where their other half stands inside.
    """
    start, end = 0, len(text)
    while start < end and _is_loose_start(text[start:end]):
        start += 1
    while start < end and _is_loose_end(text[start:end]):
        end -= 1
    return (start, end) if start < end else (0, len(text))


def _is_loose_start(text: str) -> bool:
    first, rest = text[0], text[1:]
    if first in _SIGNS and rest[:1].isdigit():
        return False
    if first in _STRAIGHT:
        return rest[:1] in _AFTER_QUOTATION or rest.count(first) % 2 == 0
    return _is_around_words(first) and (first not in _CLOSER or _CLOSER[first] not in rest)


def _is_loose_end(text: str) -> bool:
    last, rest = text[-1], text[:-1]
    if last in _STRAIGHT:
        return rest.count(last) % 2 == 0
    return _is_around_words(last) and (last not in _OPENERS or _OPENERS[last] not in rest)


def _is_around_words(character: str) -> bool:
    if character in _OF_WORDS:
        return False
    return character.isspace() or unicodedata.category(character)[0] in "PCZ"
