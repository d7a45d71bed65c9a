"""Matchers over numbers: a numeric field against bounds, an activation against a direction.

Both look at a judged decoding as it was measured, not at its text; what was not measured is
unknown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from nae_monitor.detect.directions import Direction
from nae_monitor.detect.views import REQUEST_PREFIX, Missing, Subject

ACTIVATION_FIELD = "activation"
Measure = Literal["cosine", "projection"]
FIGURE_DIGITS = 6  # rounded before it is compared: the figure shown is the figure decided on


@dataclass(frozen=True, slots=True)
class ValueMatcher:
    """A number at least ``gte``, at most ``lte`` and among ``among``, each where given."""

    gte: float | None = None
    lte: float | None = None
    among: tuple[float, ...] = ()
    cost: ClassVar[int] = 0

    def admits(self, figure: float) -> bool:
        """Whether the number fits every bound."""
        return (
            (self.gte is None or figure >= self.gte)
            and (self.lte is None or figure <= self.lte)
            and (not self.among or figure in self.among)
        )

    def figure(self, field: str, subject: Subject) -> float | Missing | None:
        """The number of a field; None where a request has no such key."""
        if field.startswith(REQUEST_PREFIX):
            return _request_figure(field, subject)
        found = subject.figure(field)
        if found is None or not math.isfinite(found):
            return Missing(f"the {field} is not known")
        return found


def _request_figure(field: str, subject: Subject) -> float | Missing | None:
    text = subject.request.get(field.removeprefix(REQUEST_PREFIX), "").strip()
    if not text:
        return None
    try:
        figure = float(text)
    except ValueError:
        return Missing(f"{field} is not a number")
    return figure if math.isfinite(figure) else Missing(f"{field} is not a number")


@dataclass(frozen=True, slots=True)
class ActivationMatcher:
    """How far an activation points along a direction of its layer.

    ``cosine``: -1..1; ``projection``: the activation's component along the direction, in units of
    the residual stream.
    """

    direction: Direction
    layer: int  # index into hidden_states
    measure: Measure
    gte: float
    cost: ClassVar[int] = 1

    def admits(self, figure: float) -> bool:
        """Whether the measure reaches its bound."""
        return figure >= self.gte

    def figure(self, field: str, subject: Subject) -> float | Missing | None:
        """The measure; missing where there is no vector, or none that the direction is for."""
        if self.direction.vector is None:
            return Missing("the direction's file is not there")
        if subject.vector is None:
            return Missing("the activation is not there")
        if subject.layer != self.layer:
            return Missing(f"the activation is of layer {subject.layer}, not {self.layer}")
        vector = subject.vector.to(torch.float64).numpy()
        if vector.shape != self.direction.vector.shape:
            return Missing("the direction has another width than the activation")
        along = float(vector @ self.direction.vector)
        figure = along
        if self.measure == "cosine":
            length = float(np.linalg.norm(vector))
            figure = along / length if length > 0 else math.nan
        return round(figure, FIGURE_DIGITS) if math.isfinite(figure) else Missing("not finite")


FigureMatcher = ValueMatcher | ActivationMatcher
