"""The workers that a serving process would ship to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from nae_monitor.cli.checks.check import Check, problem_checks
from nae_monitor.errors import ConfigurationError
from nae_monitor.settings import Settings

MEND = "start it: nae-monitor worker --config FILE"


def workers(settings: Settings) -> Iterator[Check]:
    """Greets each worker as a serving process would, and goes again."""
    from nae_monitor.placement.probe import probe_workers

    if settings.capture.placement == "inline":
        return
    away: Literal["fault", "warning"] = (
        "fault" if settings.capture.on_failure == "refuse" else "warning"
    )
    try:
        states = probe_workers(settings)
    except ConfigurationError as error:
        yield from problem_checks("workers", error)
        return
    for name, state in states.items():
        if state == "ready":
            yield Check("worker", "ok", f"{name}: {state}")
        else:
            refused = state.startswith("refused")
            yield Check("worker", "fault" if refused else away, f"{name}: {state}", MEND)
