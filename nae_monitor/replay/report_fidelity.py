"""Steps of the colour scales, and the histogram of FVE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

LOWEST_BIN, BIN_COUNT = -0.2, 12  # tenths from -0.2 to 1; lower values join the first
SCORE_SHARES = (0.5, 0.75, 0.9, 0.97)  # of the scored rows, where the steps of their colours lie


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of the histogram, in the units of its view box (width 12, height 1)."""

    x: int
    height: float
    count: int
    low: float
    high: float
    bucket: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """FVE of every decode."""

    bars: tuple[Bar, ...]
    median: float | None
    median_x: float
    negative_share: float


def fidelity_bucket(fve: float | None) -> str:
    """The step of the colour scale: unknown, below (zero or less), 1 … 5."""
    if fve is None or math.isnan(fve):
        return "unknown"
    return "below" if fve <= 0 else str(min(5, int(fve * 5) + 1))


def histogram(values: Sequence[float]) -> Histogram:
    """Tenths of FVE; the tallest bar is 1 high."""
    counts = [0] * BIN_COUNT
    for value in values:
        place = math.floor((value - LOWEST_BIN) * 10 + 1e-9)
        counts[min(BIN_COUNT - 1, max(0, place))] += 1
    tallest = max(counts, default=0) or 1
    bars = tuple(
        Bar(i, n / tallest, n, low, low + 0.1, fidelity_bucket(low + 0.05))
        for i, n in enumerate(counts)
        for low in [round(LOWEST_BIN + i / 10, 1)]
    )
    middle = median(values) if values else None
    x = 0.0 if middle is None else min(BIN_COUNT, max(0.0, (middle - LOWEST_BIN) * 10))
    negative = sum(value <= 0 for value in values) / (len(values) or 1)
    return Histogram(bars, middle, x, negative)


def score_steps(strongest: Sequence[float]) -> list[float]:
    """Where the colours of screen scores change, ascending, by this run's own rows.

    Scores of different screens have different scales, so no fixed step would suit them all.
    Empty without scores; equal steps are one.
    """
    if not strongest:
        return []
    ordered = sorted(strongest)
    picked = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in SCORE_SHARES)
    return sorted({float(f"{value:.3g}") for value in picked})
