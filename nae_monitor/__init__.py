"""nae_monitor: reads what a deployed language model is computing, and raises alerts on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nae_monitor.version import __version__

if TYPE_CHECKING:
    from nae_monitor.monitor import Monitor
    from nae_monitor.settings import Settings

__all__ = ["Monitor", "Settings", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the heavy parts when they are first asked for."""
    if name == "Monitor":
        from nae_monitor.monitor import Monitor

        return Monitor
    if name == "Settings":
        from nae_monitor.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
