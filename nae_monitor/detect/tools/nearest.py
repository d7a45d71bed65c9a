"""How near a text came to what a fuzzy or semantic selection looks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rapidfuzz import fuzz

from nae_monitor.detect.figures import ActivationMatcher, FigureMatcher, ValueMatcher
from nae_monitor.detect.matchers import FuzzyMatcher
from nae_monitor.detect.schema import Selection
from nae_monitor.detect.semantic import MAX_SENTENCES, Encoder, SemanticMatcher
from nae_monitor.detect.views import Missing, Subject, Views


@dataclass(frozen=True, slots=True)
class Nearest:
    """The best score, and what reached it.

    Scores are 0..100 (fuzzy), cosines (semantic) or figures beside their nearest bound. The
    negative is the nearest one of the sentence that came nearest to an exemplar; None where the
    selection has none.
    """

    score: float
    threshold: float
    target: str  # the phrase or exemplar
    text: str  # the sentence compared with an exemplar; "" for phrases
    margin: float = 0.0  # asked for
    negative: str | None = None
    negative_score: float | None = None


def nearest_of(selection: Selection, views: Views, encoder: Encoder | None) -> Nearest | None:
    """None where the selection has no score, no input, or no encoder to score it with."""
    if isinstance(selection.matcher, ValueMatcher | ActivationMatcher):
        return _figure(selection, selection.matcher, views.subject)
    view = views.view(selection.field, selection.quotes, selection.case)
    if isinstance(view, Missing) or not view.text.strip():
        return None
    if isinstance(selection.matcher, FuzzyMatcher):
        return _fuzzy(selection.matcher, view.text)
    if isinstance(selection.matcher, SemanticMatcher) and encoder is not None:
        return _semantic(selection.matcher, view.text, encoder)
    return None


def _figure(selection: Selection, matcher: FigureMatcher, subject: Subject) -> Nearest | None:
    figure = matcher.figure(selection.field, subject)
    if figure is None or isinstance(figure, Missing):
        return None
    bounds = (matcher.gte, None if isinstance(matcher, ActivationMatcher) else matcher.lte)
    given = [bound for bound in bounds if bound is not None]
    if not given:
        return None
    return Nearest(figure, min(given, key=lambda bound: abs(bound - figure)), selection.field, "")


def _fuzzy(matcher: FuzzyMatcher, text: str) -> Nearest:
    def score(phrase: str) -> float:
        whole = matcher.scorer == "partial_ratio" and len(text) < len(phrase)
        return float(getattr(fuzz, "ratio" if whole else matcher.scorer)(phrase, text))

    best = max(matcher.phrases, key=score)
    return Nearest(round(score(best), 2), matcher.score, best, "")


def _semantic(matcher: SemanticMatcher, text: str, encoder: Encoder) -> Nearest | None:
    sentences = [text[a:b].strip() for a, b in matcher.stretches(text)[:MAX_SENTENCES]]
    if not sentences:
        return None
    rows = np.asarray(encoder.encode(sentences), dtype=np.float32)
    scores = rows @ np.asarray(encoder.encode(list(matcher.exemplars)), dtype=np.float32).T
    sentence, exemplar = (int(i) for i in np.unravel_index(int(scores.argmax()), scores.shape))
    negative: str | None = None
    other: float | None = None
    if matcher.negatives:
        against: Any = np.asarray(encoder.encode(list(matcher.negatives))) @ rows[sentence]
        negative = matcher.negatives[int(against.argmax())]
        other = round(float(against.max()), 4)
    return Nearest(
        round(float(scores.max()), 4),
        matcher.threshold,
        matcher.exemplars[exemplar],
        sentences[sentence],
        matcher.margin,
        negative,
        other,
    )
