"""Times as the report prints them."""

from __future__ import annotations

from datetime import UTC, datetime


def moment(unix_ns: object) -> str:
    """A date and time in UTC, or "unknown"."""
    if not isinstance(unix_ns, int) or not 0 < unix_ns < 2**62:
        return "unknown"
    return datetime.fromtimestamp(unix_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
