"""Where the words that matched stand in a text that is shown."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from nae_monitor.alert.wording import matched_words, words_range
from nae_monitor.records import Finding, Span
from nae_monitor.replay.report_said import Said

MAX_EVIDENCE = 12  # spans of one finding that are shown
# Unicode Standard Annex 9: marks, embeddings, overrides and isolates change the order on screen.
_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def revealed(text: str) -> str:
    """``text`` with each character that only steers direction written out, as ⟨U+202E⟩.

    Left in place they let a text be read in another order than the one that was judged.
    """
    return _DIRECTION.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", text)


def marked(text: str, spans: Sequence[Span]) -> tuple[tuple[str, bool], ...]:
    """``text`` cut at the spans that match it, overlapping ones joined."""
    pieces: list[tuple[str, bool]] = []
    at = 0
    for start, end in merged_ranges(text, spans):
        if start > at:
            pieces.append((text[at:start], False))
        pieces.append((text[start:end], True))
        at = end
    if at < len(text) or not pieces:
        pieces.append((text[at:], False))
    return tuple(pieces)


def merged_ranges(text: str, spans: Sequence[Span]) -> list[tuple[int, int]]:
    """The words of spans that really hold their text (offsets come from a file), joined."""
    ranges: list[tuple[int, int]] = []
    for start, end in sorted(_words(span) for span in spans if _is_true(text, span)):
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], end))
        else:
            ranges.append((start, end))
    return ranges


def _is_true(text: str, span: Span) -> bool:
    inside = 0 <= span.start < span.end <= len(text)
    return inside and text[span.start : span.end] == span.text


def _words(span: Span) -> tuple[int, int]:
    start, end = words_range(span.text)
    return span.start + start, span.start + end


def explanation_spans(finding: Finding) -> list[Span]:
    """The spans that lie in the explanation or a part of it."""
    return [span for span in finding.spans if span.field.split(".")[0] == "explanation"]


def elsewhere(finding: Finding, withheld: bool) -> tuple[str, ...]:
    """Matches outside the explanation: the field, and its text unless that is a hash."""
    inside = explanation_spans(finding)
    return tuple(
        dict.fromkeys(
            span.field if withheld else f"{span.field}: {matched_words(span.text)}"
            for span in finding.spans
            if span not in inside
        )
    )


def evidence(finding: Finding, said: Said, withheld: bool) -> list[list[Any]]:
    """What matched, each as selection, field, words, score and where in the conversation.

    Words and score may be empty; the first and the last token are None outside its text.
    """
    told = (
        (
            span.selection,
            span.field,
            "" if withheld else matched_words(span.text),
            "" if span.score is None or not math.isfinite(span.score) else f"{span.score:.3g}",
            said.tokens(span),
        )
        for span in finding.spans
    )
    return [list(one) for one in list(dict.fromkeys(told))[:MAX_EVIDENCE]]


def visible_token(text: str) -> str:
    """A token without the space glued to it; one of only white space by its signs."""
    return text.strip() or text.replace("\n", "⏎").replace(" ", "␣").replace("\t", "⇥")
