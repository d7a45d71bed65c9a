"""A switch that stops calling what fails again and again, and tries it now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from nae_monitor.health import Health
from nae_monitor.pipeline.ports import Clock

T = TypeVar("T")
RETRY_S = 5.0  # an open circuit lets one trial call through this often


class Circuit:
    """Guards a component whose circuit can close again.

    ``Health`` opens a circuit after failures in a row. Here that means: calls are held back, but
    for one trial every ``RETRY_S``; the first that goes well closes the circuit.
    """

    def __init__(self, component: str, health: Health, clock: Clock) -> None:
        self._component = component
        self._health = health
        self._clock = clock
        self._trial_at_s = 0.0

    def allows(self) -> bool:
        """Whether to call the component now; True for an open circuit is the trial."""
        if not self._health.is_open(self._component):
            return True
        now_s = self._clock()
        if now_s < self._trial_at_s:
            return False
        self._trial_at_s = now_s + RETRY_S
        return True

    @contextmanager
    def guard(self) -> Iterator[None]:
        """As :meth:`Health.guard`, and closes the circuit on success."""
        went_well = False
        with self._health.guard(self._component):
            yield
            went_well = True
        if not went_well:
            self._trial_at_s = self._clock() + RETRY_S
        elif self._health.is_open(self._component):
            self._health.recovered(self._component)

    def call(self, work: Callable[[], T]) -> T | None:
        """What ``work`` returns, as under :meth:`guard`; None where it failed."""
        with self._health.guard(self._component):
            result = work()
            if self._health.is_open(self._component):
                self._health.recovered(self._component)
            return result
        self._trial_at_s = self._clock() + RETRY_S
        return None
