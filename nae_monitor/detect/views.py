"""What a rule may look at: the fields of one judged decoding, each normalised at most once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nae_monitor.detect.text import (
    MappedText,
    Quotes,
    normalise,
    paragraphs,
    select_quotes,
)
from nae_monitor.records import Activation, Decoding, Span, Transcript

FIELDS = ("explanation", "explanation.head", "explanation.final", "prompt", "output", "token")
REQUEST_PREFIX = "request."
MAX_FIELD_CHARS = 200_000  # a longer field is judged on its beginning; no match there is unknown
MAX_SPAN_CHARS = 500  # of a span's text; its offsets always cover the whole match

Normaliser = Callable[..., MappedText]


@dataclass(frozen=True, slots=True)
class Hit:
    """A stretch of a view that a matcher found."""

    start: int
    end: int
    score: float | None = None


@dataclass(frozen=True, slots=True)
class View:
    """One field as a selection sees it; offsets map back to ``whole``, the untouched field."""

    field: str
    whole: str
    offset: int  # of the viewed part within the whole field, characters
    mapped: MappedText
    truncated: bool

    @property
    def text(self) -> str:
        """The normalised text to match against."""
        return self.mapped.text

    def span(self, selection: str, hit: Hit) -> Span:
        """The hit as a span of the original field."""
        start, end = self.mapped.origin(hit.start, hit.end)
        start, end = start + self.offset, end + self.offset
        shown = self.whole[start : min(end, start + MAX_SPAN_CHARS)]
        return Span(selection, self.field, start, end, shown, hit.score)


@dataclass(frozen=True, slots=True)
class Missing:
    """A field that cannot be looked at: its selections are unknown, never unmatched."""

    why: str


@dataclass(frozen=True, slots=True)
class Subject:
    """The texts of one judged decoding; None where a text was withheld."""

    explanation: str
    prompt: str | None
    output: str | None
    token: str
    request: Mapping[str, str]

    @classmethod
    def of(cls, activation: Activation, decoding: Decoding, transcript: Transcript) -> Subject:
        """Gather the texts of one activation."""
        request = activation.request
        named = {
            "request_id": request.request_id,
            "group_id": request.group_id,
            "model": request.model,
            "session_id": request.session_id or "",
            "tenant": request.tenant or "",
        }
        fields = {**request.attributes, **named}
        return cls(decoding.text, transcript.prompt, transcript.output, activation.token, fields)

    def field(self, name: str) -> tuple[str, str] | Missing:
        """The name and text that ``name`` reads from.

        A request key the caller never set is empty text (it is known to be absent); a withheld
        prompt or output, and a decode without any text, are missing.
        """
        if name.startswith(REQUEST_PREFIX):
            return name, self.request.get(name.removeprefix(REQUEST_PREFIX), "")
        base = name.partition(".")[0]
        text: str | None = getattr(self, base)
        if text is None:
            return Missing(f"the {base} was withheld")
        if base == "explanation" and not text.strip():
            return Missing("the explanation is empty")
        return base, text


class Views:
    """The views of one subject, each built at most once."""

    def __init__(self, subject: Subject, normaliser: Normaliser = normalise) -> None:
        self._subject = subject
        self._normalise = normaliser
        self.view = functools.lru_cache(maxsize=None)(self._view)

    def _view(self, field: str, quotes: Quotes, case: bool) -> View | Missing:
        found = self._subject.field(field)
        if isinstance(found, Missing):
            return found
        base, whole = found
        start, end = _part(whole[:MAX_FIELD_CHARS], field)
        mapped = select_quotes(self._normalise(whole[start:end], case=case), quotes)
        return View(base, whole, start, mapped, len(whole) > MAX_FIELD_CHARS)


def _part(text: str, field: str) -> tuple[int, int]:
    """Where the head (first paragraph) or final (last paragraph) of an explanation stands."""
    if field not in ("explanation.head", "explanation.final"):
        return 0, len(text)
    found = paragraphs(text)
    if not found:
        return 0, len(text)
    return found[0] if field.endswith("head") else found[-1]
