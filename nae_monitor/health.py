"""Counters for everything that happened and everything that did not.

A failure that is swallowed to protect the host is counted here under a reason; nothing else in
the package may swallow an exception. Reading is cheap and never blocks the serving thread.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType

from nae_monitor.records import Coverage

log = logging.getLogger("nae_monitor")

CIRCUIT_LIMIT = 5  # failures in a row after which a guarded callback is switched off


class Health:
    """Process-wide counters, per-request ledgers and circuit breakers. Thread-safe."""

    def __init__(self, ledger_limit: int = 10_000) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._gauges: dict[str, int] = {}
        self._ledgers: dict[str, Counter[str]] = {}
        self._ledger_limit = ledger_limit
        self._failures_in_row: Counter[str] = Counter()
        self._open: set[str] = set()
        # A fork while another thread counts would leave the child a lock that nobody frees.
        child = weakref.WeakMethod(self._renew_lock)
        os.register_at_fork(after_in_child=lambda: (renew := child()) and renew())

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def count(self, name: str, amount: int = 1, *, request_id: str | None = None) -> None:
        """Add ``amount`` to a counter such as ``tokens.seen`` or ``dropped.queue_full``."""
        with self._lock:
            self._counts[name] += amount
            if request_id is not None:
                self._ledger(request_id)[name] += amount

    def count_each(self, name: str, amounts: Mapping[str, int]) -> None:
        """As :meth:`count` for several requests at once: ``amounts`` by request id."""
        with self._lock:
            self._counts[name] += sum(amounts.values())
            for request_id, amount in amounts.items():
                self._ledger(request_id)[name] += amount

    def add_to_ledger(self, request_id: str, amounts: Mapping[str, int]) -> None:
        """Add what another process counted of a request, by counter, to its ledger alone.

        The overall counters stay: both processes export theirs, and a sum over them would hold
        every token twice.
        """
        with self._lock:
            self._ledger(request_id).update(amounts)

    def counted(self, name: str, request_id: str) -> int:
        """One entry of a request's ledger; 0 also where the ledger was forgotten."""
        with self._lock:
            ledger = self._ledgers.get(request_id)
            return 0 if ledger is None else ledger[name]

    def gauge(self, name: str, value: int) -> None:
        """Set a figure that goes up and down, such as ``activations.lag_records``."""
        with self._lock:
            self._gauges[name] = value

    def gauges(self) -> Mapping[str, int]:
        """A copy of every such figure."""
        with self._lock:
            return dict(self._gauges)

    def forget(self, request_id: str) -> None:
        """Drop the ledger of a request whose id begins anew; the overall counters stay."""
        with self._lock:
            self._ledgers.pop(request_id, None)

    def ledger(self, request_id: str) -> Mapping[str, int]:
        """A copy of all counters of a request; empty where it is unknown or forgotten."""
        with self._lock:
            return dict(self._ledgers.get(request_id, {}))

    def _ledger(self, request_id: str) -> Counter[str]:
        ledger = self._ledgers.get(request_id)
        if ledger is None:
            while len(self._ledgers) >= self._ledger_limit:  # oldest request is forgotten first
                self._ledgers.pop(next(iter(self._ledgers)))
            ledger = self._ledgers[request_id] = Counter()
        return ledger

    def failed(self, component: str, error: Exception) -> None:
        """Count a swallowed failure; the fifth in a row opens the component's circuit.

        The log line names the exception's type only: messages can quote prompts.
        """
        with self._lock:
            self._counts[f"failed.{component}.{type(error).__name__}"] += 1
            self._failures_in_row[component] += 1
            opens = self._failures_in_row[component] == CIRCUIT_LIMIT
            if opens:
                self._open.add(component)
                self._counts[f"circuit_open.{component}"] += 1
            first = self._failures_in_row[component] == 1
        if opens:
            log.error("%s failed %d times in a row and is off", component, CIRCUIT_LIMIT)
        elif first:
            log.warning("%s failed with %s; serving goes on", component, type(error).__name__)

    def succeeded(self, component: str) -> None:
        """End a component's run of failures."""
        if self._failures_in_row.get(component):
            with self._lock:
                self._failures_in_row[component] = 0

    def recovered(self, component: str) -> None:
        """Close the component's circuit: a trial call went well."""
        with self._lock:
            self._failures_in_row[component] = 0
            if component not in self._open:
                return
            self._open.discard(component)
            self._counts[f"circuit_closed.{component}"] += 1
        log.warning("%s works again and is on", component)

    def open_circuits(self) -> frozenset[str]:
        """Every component that is switched off."""
        with self._lock:
            return frozenset(self._open)

    def is_open(self, component: str) -> bool:
        """Whether the component's circuit is open, i.e. it is switched off."""
        return component in self._open

    def any_open(self, components: frozenset[str]) -> bool:
        """Whether the circuit of any of ``components`` is open."""
        return bool(self._open) and not self._open.isdisjoint(components)

    def guard(self, component: str) -> AbstractContextManager[None, bool]:
        """Run a block at the host boundary: any ``Exception`` is counted, none passes."""
        return _Guard(self, component)

    def counters(self) -> Mapping[str, int]:
        """A copy of every counter."""
        with self._lock:
            return dict(self._counts)

    def coverage(self, request_id: str) -> Coverage:
        """The ledger of one request as a record; all zeros for a request never seen."""
        with self._lock:
            ledger = Counter(self._ledgers.get(request_id, ()))
        return Coverage(
            seen_tokens=ledger["tokens.seen"],
            screened_tokens=ledger["tokens.screened"],
            sampled_tokens=ledger["tokens.sampled"],
            decoded_tokens=ledger["tokens.decoded"],
            judged_tokens=ledger["tokens.judged"],
            cached_tokens=ledger["tokens.cached"],
            dropped_tokens={
                name.removeprefix("dropped."): amount
                for name, amount in sorted(ledger.items())
                if name.startswith("dropped.")
            },
            excluded_tokens=ledger["tokens.excluded"],
            reused_tokens=ledger["tokens.reused"],
        )


class _Guard:
    """See :meth:`Health.guard`. A class, because a generator costs several times as much."""

    __slots__ = ("_component", "_health")

    def __init__(self, health: Health, component: str) -> None:
        self._health = health
        self._component = component

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is None:
            self._health.succeeded(self._component)
            return False
        if not isinstance(error, Exception):
            return False
        self._health.failed(self._component, error)  # the one place allowed to swallow
        return True
