"""Where in a conversation's tokens the words stand that a rule found in prompt or completion."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from nae_monitor.recording import RequestRecord
from nae_monitor.records import Span


@dataclass(frozen=True, slots=True)
class _Part:
    text: str
    ends: Sequence[int]  # of each token, in characters of ``text``
    first: int  # position of its first token


@dataclass(frozen=True, slots=True)
class Said:
    """The prompt and the completion of a conversation as far as their tokens are on record."""

    parts: dict[str, _Part] = field(default_factory=dict)

    def tokens(self, span: Span) -> tuple[int, int] | None:
        """Positions of the first and the last token that ``span`` touches.

        None where it lies in neither part, or its text is not what stands there: offsets come
        from a file, and rules may have seen a prompt in another form than its tokens'.
        """
        part = self.parts.get(span.field)
        if part is None or not 0 <= span.start < span.end <= len(part.text):
            return None
        if part.text[span.start : span.end] != span.text:
            return None
        first, last = bisect_right(part.ends, span.start), bisect_left(part.ends, span.end)
        return part.first + first, part.first + last


def said_in(record: RequestRecord | None) -> Said:
    """Nothing where the request never finished or its text is withheld."""
    if record is None:
        return Said()
    told = (
        ("prompt", record.prompt_token_texts, 0),
        ("output", record.output_token_texts, record.prompt_tokens),
    )
    return Said(
        {
            name: _Part("".join(texts), list(accumulate(map(len, texts))), first)
            for name, texts, first in told
            if texts
        }
    )
