"""A look at the workers without serving anything."""

from __future__ import annotations

import time

from nae_monitor.health import Health
from nae_monitor.placement.outpost import captured_by, open_way
from nae_monitor.settings import Settings

LOOK_S = 0.01


def probe_workers(settings: Settings) -> dict[str, str]:
    """Greet every worker for up to ``ipc.connect_s``; how each is, and why.

    Raises:
        ConfigurationError: the pair's sidecar is broken, or it is unsafe to connect.
    """
    way = open_way(settings, captured_by(settings), Health())
    way.open()
    end_s = time.monotonic() + settings.ipc.connect_s
    try:
        while not way.is_answered() and time.monotonic() < end_s:
            way.poll()
            time.sleep(LOOK_S)
        return way.states()
    finally:
        way.close()
