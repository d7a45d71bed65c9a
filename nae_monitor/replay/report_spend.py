"""What decoding was spent on: decodes, time and matches by why a token was chosen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from nae_monitor.records import SampleReason

_WHY: Mapping[str, str] = {
    SampleReason.RANDOM: "random reserve",
    SampleReason.EVERY_N: "every n-th token",
    SampleReason.SCORE: "screen score",
    SampleReason.NEIGHBOUR: "neighbour of a hit",
    SampleReason.RESAMPLE: "same token again",
    SampleReason.RAISED: "raised by a rule",
    SampleReason.REPLAY: "replay",
}


@dataclass(slots=True)
class ReasonSpend:
    """What tokens that were chosen for one reason cost and brought."""

    chosen: int = 0  # rows
    decoded: int = 0  # rows
    seconds: float = 0.0  # of decoding, as shares of batches' wall time
    matched: int = 0  # decoded rows in which a rule matched

    @property
    def match_share(self) -> float | None:
        """Of the decodes; None without any."""
        return self.matched / self.decoded if self.decoded else None


@dataclass(slots=True)
class Spend:
    """Filled row by row."""

    by_reason: dict[str, ReasonSpend] = field(default_factory=dict)
    of_request: Counter[str] = field(default_factory=Counter)  # decodes
    lost: Counter[str] = field(default_factory=Counter)  # rows chosen and not decoded, by reason
    text_tokens: int = 0  # written by the verbalizer
    reused: int = 0  # rows among the decoded that a decode made for another row answered

    def add(self, row: Mapping[str, Any], matched: bool) -> None:
        """Count one row of the recording."""
        spent = self.by_reason.setdefault(row["reason"] or "unknown", ReasonSpend())
        spent.chosen += 1
        if not row["decoded"]:
            self.lost[row["dropped_reason"] or "not decoded"] += 1
            return
        spent.decoded += 1
        seconds = row["decode_seconds"]
        spent.seconds += seconds if seconds is not None and math.isfinite(seconds) else 0.0
        spent.matched += matched
        self.text_tokens += row["decode_tokens"] or 0
        self.reused += bool(row["reused"])
        self.of_request[row["request_id"]] += 1

    @property
    def decodes(self) -> int:
        """Rows with an explanation that was made for them."""
        return sum(self.of_request.values()) - self.reused

    @property
    def seconds(self) -> float:
        """Of decoding; 0 where nobody measured."""
        return sum(spent.seconds for spent in self.by_reason.values())

    @property
    def per_request(self) -> tuple[float, int] | None:
        """Median and largest number of decodes of a request that has any."""
        counts = self.of_request.values()
        return (median(counts), max(counts)) if counts else None

    @property
    def rows(self) -> list[tuple[str, ReasonSpend]]:
        """Why in words, and what was spent so; the largest first."""
        ordered = sorted(self.by_reason.items(), key=lambda item: (-item[1].decoded, item[0]))
        return [(why(reason), spent) for reason, spent in ordered]


def why(reason: str) -> str:
    """Why a token was chosen, in words."""
    return _WHY.get(reason, reason.replace("_", " "))


def duration(seconds: float) -> str:
    """Seconds as a reader takes them in."""
    if seconds < 120:
        return f"{seconds:,.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{seconds / 3600:,.1f} h"
