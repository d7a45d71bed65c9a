"""Stops as the report shows them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nae_monitor.records import Stop
from nae_monitor.replay.moments import moment

MAX_STOPS = 300  # printed; beyond, they are counted


@dataclass(frozen=True, slots=True)
class StopView:
    """One wish to end a generation, in words."""

    request_id: str
    rule: str
    position: int  # tokens, from 0
    mode: str
    outcome: str
    when: str


def stop_views(stops: Iterable[Stop]) -> list[StopView]:
    """In the order of time."""
    return [
        StopView(
            request_id=stop.request_id,
            rule=f"{stop.rule_name} v{stop.rule_version}",
            position=stop.position,
            mode="enforce" if stop.enforced else "shadow",
            outcome=outcome_text(stop),
            when=moment(stop.time_unix_ns),
        )
        for stop in sorted(stops, key=lambda stop: (stop.time_unix_ns, stop.request_id))
    ]


def outcome_text(stop: Stop) -> str:
    """What came of a stop, and why or how late."""
    text = stop.outcome.value.replace("_", " ")
    if stop.why:
        return f"{text}: {stop.why}"
    if stop.behind_tokens is not None:
        tokens = "token" if stop.behind_tokens == 1 else "tokens"
        return f"{text}, {stop.behind_tokens} {tokens} after the hit"
    return text
