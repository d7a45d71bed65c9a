"""The one switch of every plugin, and what happens where an engine cannot be watched at all."""

from __future__ import annotations

import logging
import os

log = logging.getLogger("nae_monitor")

SWITCH = "NAE_MONITOR_CONFIG"


def configured() -> str | None:
    """Path of the configuration; None: nothing is to be patched."""
    return os.environ.get(SWITCH) or None


def refuse(path: str, engine: str, error: Exception) -> None:
    """End the process, or say aloud that it serves unmonitored where that is allowed.

    Raises:
        SystemExit: unless the configuration says ``on_failure: serve``.
    """
    log.critical("monitor blind: this %s cannot be watched: %s", engine, type(error).__name__)
    if on_failure(path) != "serve":
        raise SystemExit(
            f"nae_monitor: this {engine} cannot be watched ({type(error).__name__}: {error}). "
            "Install a supported version, or set capture.on_failure to serve"
        )


def on_failure(path: str) -> str:
    """What the configuration says of a failed start; ``refuse`` where it cannot be read."""
    from nae_monitor.errors import ConfigurationError
    from nae_monitor.settings import Settings

    try:
        return str(Settings.from_yaml(path).capture.on_failure)
    except (ConfigurationError, OSError):
        return "refuse"
