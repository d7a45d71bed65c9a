"""Claims with a bound, what they came to, and the JSON that every benchmark writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reporting.machine import Machine


@dataclass(frozen=True, slots=True)
class Bound:
    """What a value must reach, or must not exceed."""

    limit: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"

    def met_by(self, value: float) -> bool:
        """Whether ``value`` is on the right side; the limit itself is."""
        return value <= self.limit if self.at_most else value >= self.limit


@dataclass(frozen=True, slots=True)
class Claim:
    """One measured value. ``bound`` is None for what is reported and not claimed.

    ``value`` is NaN where it could not be measured, ``low`` and ``high`` are NaN where no
    interval is meant; intervals are 95 %.
    """

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    unit: str = ""
    bound: Bound | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the value meets the bound; None where there is no bound or no value."""
        return met(self.bound, self.value)

    @property
    def holds_firmly(self) -> bool | None:
        """Whether the whole interval meets the bound; None where one of them is missing."""
        if self.bound is None:
            return None
        return met(self.bound, self.high if self.bound.at_most else self.low)

    def plain(self) -> dict[str, Any]:
        """For JSON: null where something is unknown."""
        return {
            "name": self.name,
            "value": _finite(self.value),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "unit": self.unit,
            "bound": None if self.bound is None else str(self.bound),
            "holds": self.holds,
        }


def met(bound: Bound | None, value: float) -> bool | None:
    """Whether ``value`` meets ``bound``; an unknown value meets nothing and fails nothing."""
    return None if bound is None or math.isnan(value) else bound.met_by(value)


def verdict(claim: Claim) -> str:
    """``holds`` in words; ``value only`` where the interval reaches past the bound."""
    if claim.holds is None:
        return "not measured" if claim.bound else "not claimed"
    if not claim.holds:
        return "NO"
    return "value only" if claim.holds_firmly is False else "yes"


@dataclass(frozen=True, slots=True)
class Report:
    """All claims of one run. ``context`` holds what else a reader of the JSON may want."""

    machine: Machine
    claims: Sequence[Claim]
    context: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 where a claim does not hold."""
        return int(any(claim.holds is False for claim in self.claims))

    @property
    def summary(self) -> str:
        """How many claims hold; what could not be measured is never among them."""
        claimed = [c for c in self.claims if c.bound is not None]
        unknown = sum(c.holds is None for c in claimed)
        text = f"{sum(c.holds is True for c in claimed)} of {len(claimed)} claims hold"
        return f"{text}, {unknown} could not be measured" if unknown else text

    def write(self, path: Path) -> None:
        """Write the JSON: ``machine``, ``claims``, and ``context`` where there is any."""
        content: dict[str, Any] = {
            "machine": self.machine.plain(),
            "claims": [claim.plain() for claim in self.claims],
        }
        if self.context:
            content["context"] = dict(self.context)
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        path.write_text(text, encoding="utf-8")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
