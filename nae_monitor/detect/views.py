"""What a rule may look at: the fields of one judged decoding, each text normalised once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

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
SCORE_PREFIX = "score."  # what the screen scored a row with
NUMBER_FIELDS = (
    "fve",
    "cosine",
    "percentile",
    "rank",
    "bank_size",
    "support",
    "closed",
    "generated_tokens",
    "position",
    "norm",
    "layer",
    "token_id",
)
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


def _unknown(name: str) -> float | None:
    return None


@dataclass(frozen=True, slots=True)
class Subject:
    """What is known of one judged decoding; a text that was withheld is None."""

    explanation: str
    prompt: str | None
    output: str | None
    token: str
    request: Mapping[str, str]
    figure: Callable[[str], float | None] = _unknown  # by numeric field; None: not known
    vector: torch.Tensor | None = field(default=None, compare=False)  # [d], on the CPU
    layer: int | None = None  # of the vector: index into hidden_states
    # What a rule's own example says in place of a measurement, by selection.
    given: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(
        cls,
        activation: Activation,
        decoding: Decoding,
        transcript: Transcript,
        percentile: float | None = None,
    ) -> Subject:
        """Gather what is known of one activation.

        Args:
            activation: the row that was decoded.
            decoding: its text and how well that reconstructs the row.
            transcript: the visible text around it.
            percentile: where its fidelity stands in a calibration set, 0..100.
        """
        request = activation.request
        named = {
            "request_id": request.request_id,
            "group_id": request.group_id,
            "model": request.model,
            "session_id": request.session_id or "",
            "tenant": request.tenant or "",
        }
        fields = {**request.attributes, **named}
        return cls(
            decoding.text,
            transcript.prompt,
            transcript.output,
            activation.token,
            fields,
            functools.partial(_measured, activation, decoding, percentile),
            activation.vector,
            activation.layer,
        )

    def text(self, name: str) -> tuple[str, str] | Missing:
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


def _measured(
    activation: Activation, decoding: Decoding, percentile: float | None, name: str
) -> float | None:
    """The number under the name of a numeric field; None: not known."""
    if name.startswith(SCORE_PREFIX):
        return activation.scores.get(name.removeprefix(SCORE_PREFIX))
    if name in ("position", "layer", "norm", "token_id"):
        return float(getattr(activation, name))
    if name == "percentile":
        return percentile
    found = getattr(decoding, "tokens" if name == "generated_tokens" else name)
    return None if found is None else float(found)


class Views:
    """The views of one subject, each built at most once."""

    def __init__(self, subject: Subject, normaliser: Normaliser = normalise) -> None:
        self.subject = subject
        self._normalise = normaliser
        self.view = functools.lru_cache(maxsize=None)(self._view)

    def _view(self, field: str, quotes: Quotes, case: bool) -> View | Missing:
        found = self.subject.text(field)
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
