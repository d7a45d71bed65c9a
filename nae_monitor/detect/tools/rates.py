"""Rates with Wilson score intervals (E. B. Wilson, 1927): right at 0 hits and in small samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Rate:
    """``hits`` of ``trials``; the properties are shares 0..1 with a 95 % interval."""

    hits: int
    trials: int

    @property
    def share(self) -> float | None:
        """None without trials: not known, not zero."""
        return self.hits / self.trials if self.trials else None

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson 95 % interval; (0, 1) without trials."""
        n = self.trials
        if n == 0:
            return 0.0, 1.0
        p, z2 = self.hits / n, Z_95 * Z_95
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        # Rounding must not put the share itself outside.
        return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))
