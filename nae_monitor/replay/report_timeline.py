"""Alerts over time, by severity and by rule, over the requests among which they arose."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from nae_monitor.records import Severity

MAX_BINS = 36
MAX_RULES = 14  # rows of the table; the rest is one row more
TICKS = 6
_HOUR, _DAY = 3600, 86_400
_WIDTHS_S = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(_HOUR, 2 * _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR),
    *(_DAY, 2 * _DAY, 7 * _DAY, 30 * _DAY, 91 * _DAY, 365 * _DAY),
)
_UPWARDS = [severity.value for severity in Severity]


class Timed(Protocol):
    """What the time line needs of an alert."""

    @property
    def severity(self) -> str:
        """A name of :class:`Severity`."""

    @property
    def rule(self) -> str:
        """The rule's name."""

    @property
    def when_unix_ns(self) -> int:
        """Of its first hit; 0 if unknown."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One severity in one bin of the chart, which is 1 high."""

    bin: int
    severity: str
    y: float
    height: float
    count: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One bin of a row; ``strength`` is 0..1 of the row's largest."""

    bin: int
    count: int
    strength: float


@dataclass(frozen=True, slots=True)
class Row:
    """What one rule raised, or the requests; ``severity`` is empty for what is no alert."""

    name: str
    severity: str
    cells: tuple[Cell, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Tick:
    """A label under the chart; ``share`` is its place from left to right, 0..1."""

    share: float
    text: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Bins of equal width from ``start_s`` on."""

    start_s: int  # Unix time of the first bin
    width_s: int
    bins: int
    pieces: tuple[Piece, ...]
    most: int  # alerts in one bin
    rules: tuple[Row, ...]
    further_rules: int
    requests: Row
    ticks: tuple[Tick, ...]
    undated: int  # alerts whose time is unknown

    @property
    def width(self) -> str:
        """How long a bin is, in words."""
        units = ((_DAY, "day"), (_HOUR, "hour"), (60, "minute"), (1, "second"))
        unit_s, name = next(unit for unit in units if self.width_s % unit[0] == 0)
        count = self.width_s // unit_s
        return name if count == 1 else f"{count:,} {name}s"

    def span(self, bin_number: int) -> str:
        """From when to when a bin reaches."""
        start_s = self.start_s + bin_number * self.width_s
        return f"{_text(start_s, self.width_s)} to {_text(start_s + self.width_s, self.width_s)}"


def timeline(alerts: Sequence[Timed], request_starts_unix_ns: Sequence[int]) -> Timeline | None:
    """Count alerts and requests in bins of a round width; None where no time is known."""
    dated = [(alert, alert.when_unix_ns // 10**9) for alert in alerts if _is_time(alert)]
    starts_s = [start // 10**9 for start in request_starts_unix_ns if 0 < start < 2**62]
    seconds = [*starts_s, *(when for _, when in dated)]
    if not seconds:
        return None
    width_s = _width(max(seconds) - min(seconds))
    start_s = min(seconds) // width_s * width_s
    placed = [(alert, (when - start_s) // width_s) for alert, when in dated]
    pieces, most = _stacked(placed)
    rules = _rules(placed)
    bins = (max(seconds) - start_s) // width_s + 1
    return Timeline(
        start_s=start_s,
        width_s=width_s,
        bins=bins,
        pieces=pieces,
        most=most,
        rules=tuple(rules[:MAX_RULES]),
        further_rules=max(0, len(rules) - MAX_RULES),
        requests=_row("requests", "", ((second - start_s) // width_s for second in starts_s)),
        ticks=_ticks(start_s, width_s, bins),
        undated=len(alerts) - len(dated),
    )


def _is_time(alert: Timed) -> bool:
    return 0 < alert.when_unix_ns < 2**62


def _width(span_s: int) -> int:
    """The narrowest round width with which ``span_s`` fits, wherever the first bin begins."""
    for width_s in _WIDTHS_S:
        if span_s / width_s <= MAX_BINS - 2:
            return width_s
    return math.ceil(span_s / (MAX_BINS - 2) / _DAY) * _DAY


def _stacked(placed: Iterable[tuple[Timed, int]]) -> tuple[tuple[Piece, ...], int]:
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for alert, place in placed:
        counts[place][alert.severity] += 1
    most = max((sum(count.values()) for count in counts.values()), default=0)
    pieces = []
    for place, count in sorted(counts.items()):
        below = 0
        for severity in reversed(_UPWARDS):  # the gravest stands on the ground
            if here := count[severity]:
                below += here
                pieces.append(Piece(place, severity, 1 - below / most, here / most, here))
    return tuple(pieces), most


def _rules(placed: Iterable[tuple[Timed, int]]) -> list[Row]:
    """The gravest first, then by how often."""
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for alert, place in placed:
        places[(alert.severity, alert.rule)].append(place)
    rows = [_row(rule, severity, bins) for (severity, rule), bins in places.items()]
    return sorted(rows, key=lambda row: (-_UPWARDS.index(row.severity), -row.count, row.name))


def _row(name: str, severity: str, places: Iterable[int]) -> Row:
    counts = Counter(places)
    most = max(counts.values(), default=1)
    cells = tuple(Cell(place, count, count / most) for place, count in sorted(counts.items()))
    return Row(name, severity, cells, sum(counts.values()))


def _ticks(start_s: int, width_s: int, bins: int) -> tuple[Tick, ...]:
    step = max(1, math.ceil(bins / TICKS))
    return tuple(
        Tick(place / bins, _text(start_s + place * width_s, width_s))
        for place in range(0, bins, step)
    )


def _text(unix_s: int, width_s: int) -> str:
    """As exact as bins of ``width_s`` need it, in UTC."""
    layout = "%Y-%m-%d" if width_s >= _DAY else "%m-%d %H:%M" if width_s >= _HOUR else "%H:%M"
    if width_s < 60:
        layout += ":%S"
    return datetime.fromtimestamp(unix_s, UTC).strftime(layout)
