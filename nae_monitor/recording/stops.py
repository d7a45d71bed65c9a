"""Stops as canonical JSON, one line each time something became known of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nae_monitor.errors import RecordingError
from nae_monitor.recording.findings import typed
from nae_monitor.records import Stop, StopOutcome

_TEXTS = ("request_id", "rule_id", "rule_name", "rule_version", "why")
_COUNTS = ("started_unix_ns", "position", "time_unix_ns")
_UNKNOWABLE_COUNTS = ("within_tokens", "behind_tokens")


def stop_to_json(stop: Stop) -> dict[str, Any]:
    """Plain JSON values; the inverse of :func:`stop_from_json`."""
    return {name: getattr(stop, name) for name in stop.__slots__} | {"outcome": stop.outcome.value}


def stop_from_json(value: Any, where: str) -> Stop:
    """Build a stop from untrusted JSON.

    Raises:
        RecordingError: names ``where`` and the first thing that is not as it should be.
    """
    try:
        counts = {key: typed(value, key, int) for key in _COUNTS}
        counts |= {
            key: None if value[key] is None else typed(value, key, int)
            for key in _UNKNOWABLE_COUNTS
        }
        if not isinstance(value["enforced"], bool):
            raise TypeError("enforced must be true or false")
        return Stop(
            **{key: typed(value, key, str) for key in _TEXTS},
            **counts,
            enforced=value["enforced"],
            outcome=StopOutcome(value["outcome"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"{where}: not a stop ({type(error).__name__}: {error})") from error


def latest_stops(stops: Iterable[Stop]) -> list[Stop]:
    """The last that is known of each stop (turn and rule), in the order they were asked for."""
    latest: dict[tuple[str, int, str], Stop] = {}
    for stop in stops:
        latest[stop.request_id, stop.started_unix_ns, stop.rule_id] = stop
    return list(latest.values())
