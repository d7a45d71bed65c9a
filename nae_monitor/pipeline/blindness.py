"""Which components are blind now, and the monitor's own alert about each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from nae_monitor.health import Health
from nae_monitor.integrity import blind_alert
from nae_monitor.pipeline.ports import Clock
from nae_monitor.records import Alert, Request

REPEAT_S = 60.0  # a component that flaps is told at most this often
NOT_A_SENSE = ("observer",)  # circuits without which the monitor sees as well
UNSEEN = "capture.unseen"
_UNSEEN_COUNTERS = ("blind.no_rows", "blind.some_rows", "blind.not_mapped")


@dataclass(slots=True)
class _Fault:
    why: str
    request: Request
    by_circuit: bool
    told: bool = field(default=False)


class Blindness:
    """One alert a component when it goes blind; the next after it has worked again.

    :meth:`failed` and :meth:`works` may be called from any thread; :meth:`report` belongs to the
    background thread.
    """

    def __init__(
        self,
        health: Health,
        clock: Clock,
        *,
        model: str,
        nla_id: str,
        sequence: Iterator[int],
        emit: Callable[[Iterable[Alert]], None],
    ) -> None:
        self._health = health
        self._clock = clock
        self._model = model
        self._nla_id = nla_id
        self._sequence = sequence
        self._emit = emit
        self._told_at_s: dict[str, float] = {}
        self.renew()

    def renew(self) -> None:
        """Know of no fault, with a lock of its own: for a forked child."""
        self._lock = threading.Lock()
        self._faults: dict[str, _Fault] = {}
        self._unseen = self._count_unseen()

    def failed(
        self,
        component: str,
        why: str,
        request: Request | None = None,
        *,
        by_circuit: bool = False,
    ) -> None:
        """Note that a component is blind; ``why`` must hold no content."""
        whose = request or Request("monitor", "monitor", self._model)
        with self._lock:
            self._faults.setdefault(component, _Fault(why, whose, by_circuit))

    def works(self, component: str) -> None:
        """Note that a component did its work."""
        if component in self._faults:
            with self._lock:
                fault = self._faults.pop(component, None)
            if fault is not None and not fault.told:
                self._health.count("alerts.monitor_blind_held_back")

    def report(self) -> None:
        """Look at circuits and counters, and emit an alert for each fault not told yet."""
        self._look()
        now_s = self._clock()
        with self._lock:
            due = [(name, fault) for name, fault in self._faults.items() if self._due(name, now_s)]
            for name, fault in due:
                fault.told = True
                self._told_at_s[name] = now_s
        for name, fault in due:
            self._health.count("alerts.monitor_blind")
            alert = blind_alert(name, fault.why, fault.request, self._nla_id, self._sequence)
            self._emit([alert])

    def _due(self, component: str, now_s: float) -> bool:
        last_s = self._told_at_s.get(component)
        recently = last_s is not None and now_s - last_s < REPEAT_S
        return not self._faults[component].told and not recently

    def _look(self) -> None:
        off = self._health.open_circuits().difference(NOT_A_SENSE)
        for component in sorted(off):
            self.failed(component, "its circuit is open", by_circuit=True)
        for component, fault in list(self._faults.items()):
            if fault.by_circuit and component not in off:
                self.works(component)
        unseen = self._count_unseen()
        if unseen > self._unseen:
            self.failed(UNSEEN, "the model ran and its watched layer was not seen")
        self._unseen = unseen

    def _count_unseen(self) -> int:
        counters = self._health.counters()
        return sum(counters.get(name, 0) for name in _UNSEEN_COUNTERS)
