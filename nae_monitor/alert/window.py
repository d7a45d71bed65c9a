"""What turns an at-least-once stream back into alerts, each once and in order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from nae_monitor.alert.read_alert import ReadAlert

REMEMBERED_IDS = 100_000
MOST_HELD = 10_000


class AlertWindow:
    """Holds alerts for a while, drops repeats, gives them out in order of sequence within a key.

    A repeat has the source and id of one that is held, or of one of the ``remembered`` last that
    were :meth:`handled`. What was given out and not handled is no repeat when it comes again: its
    reader may have failed. Memory is bounded by ``most_held`` alerts and the remembered ids.
    """

    def __init__(self, *, remembered: int = REMEMBERED_IDS, most_held: int = MOST_HELD) -> None:
        if remembered < 1 or most_held < 1:
            raise ValueError("remembered and most_held are at least 1")
        self._remembered = remembered
        self._most_held = most_held
        self._handled: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._held: dict[tuple[str, str], ReadAlert] = {}
        self.repeats = 0

    def add(self, alert: ReadAlert) -> None:
        """Hold an alert, unless it is a repeat."""
        name = _name(alert)
        if name in self._handled or name in self._held:
            self.repeats += 1
        else:
            self._held[name] = alert

    @property
    def is_full(self) -> bool:
        """Whether it is time to take what is held, however short a while it was held."""
        return len(self._held) >= self._most_held

    def __len__(self) -> int:
        return len(self._held)

    def take(self) -> list[ReadAlert]:
        """Everything held, in order; it is no longer."""
        alerts = in_order(self._held.values())
        self._held.clear()
        return alerts

    def handled(self, alert: ReadAlert) -> None:
        """Remember an alert as done with."""
        self._handled[_name(alert)] = None
        while len(self._handled) > self._remembered:
            self._handled.popitem(last=False)


def in_order(alerts: Iterable[ReadAlert]) -> list[ReadAlert]:
    """Sort by sequence within each source and key; the keys keep the places their alerts had.

    Sequences of several processes compare by when these began.
    """
    alerts = list(alerts)
    by_key: dict[tuple[str, str], list[ReadAlert]] = {}
    for alert in alerts:
        by_key.setdefault((alert.source, alert.key), []).append(alert)
    ordered = {key: iter(sorted(a, key=lambda x: x.sequence)) for key, a in by_key.items()}
    return [next(ordered[alert.source, alert.key]) for alert in alerts]


def _name(alert: ReadAlert) -> tuple[str, str]:
    return alert.source, alert.id
