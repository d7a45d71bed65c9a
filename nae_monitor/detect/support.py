"""Whether the words that matched were carrying the activation.

The sentences that hold them are taken out of the explanation, and the reconstructor reads what is
left: support = cosine(AR(whole), h) - cosine(AR(rest), h). A figure near zero says the activation
is described as well without those words; it can never show that the words are true.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Protocol

import torch

from nae_monitor.detect.text import sentences
from nae_monitor.records import Span

# What ends a sentence goes with it: a reconstructor reads a full stop left alone, too.
_STOP = re.compile(r"[.!?;。！？\s]*")
COMPONENT = "detect.support"  # the name under which Health counts its failures
SUPPORT_DIGITS = 4  # rounded before it is compared: the figure shown is the figure decided on


class Reconstructing(Protocol):
    """Compares texts with an activation through the reconstructor."""

    def cosines(self, vector: torch.Tensor, texts: Sequence[str]) -> Sequence[float | None]:
        """Cosine(AR(text), h) of each text, h [d]; None where a text has no reconstruction.

        May block for one prefill a text; may raise, which is counted and makes support unknown.
        """
        ...


def support_of(
    reconstructor: Reconstructing, vector: torch.Tensor, explanation: str, spans: Sequence[Span]
) -> float | None:
    """How much closer the whole explanation reconstructs ``vector`` [d] than the rest does.

    Args:
        reconstructor: reads both texts.
        vector: the activation.
        explanation: as it was judged.
        spans: what matched, in the explanation or elsewhere.

    Returns:
        None where nothing matched inside the explanation, or a text has no reconstruction.
    """
    rest = without_sentences(explanation, spans)
    if rest is None:
        return None
    whole, cut = reconstructor.cosines(vector, [explanation, rest])
    if whole is None or cut is None or not math.isfinite(whole - cut):
        return None
    return round(whole - cut, SUPPORT_DIGITS)


def without_sentences(explanation: str, spans: Sequence[Span]) -> str | None:
    """The explanation without every sentence that a span touches; None where none does."""
    matched = [
        (span.start, span.end)
        for span in spans
        if span.field.partition(".")[0] == "explanation" and span.start < span.end
    ]
    if not matched:
        return None
    whole = sentences(explanation)
    out = [
        (first, _end(explanation, last))
        for first, last in whole
        if any(first < end and start < last for start, end in matched)
    ]
    rest: list[str] = []
    place = 0
    for start, end in sorted([*out, *matched]):
        rest.append(explanation[place : max(start, place)])
        place = max(place, end)
    rest.append(explanation[place:])
    return "".join(rest)


def _end(text: str, place: int) -> int:
    """Where the stop behind a sentence that ends at ``place`` is over."""
    stop = _STOP.match(text, place)
    return stop.end() if stop else place
