"""What follows a match: suppression of repeats, and actions, as frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Overflow = Literal["summarize", "count"]
SamplingScope = Literal["request", "session", "tenant"]
StopMode = Literal["shadow", "enforce"]


@dataclass(frozen=True, slots=True)
class Suppression:
    """Which alerts of a rule are repeats, and how many may go out at all.

    After an alert, further ones of the same group are held back for ``quiet_ns``; over all groups
    at most ``max_alerts`` go out in any ``period_ns``. What is held back is counted.
    """

    group_by: tuple[str, ...] = ("request_id",)
    quiet_ns: int = 0
    max_alerts: int | None = None
    period_ns: int = 0
    overflow: Overflow = "summarize"


@dataclass(frozen=True, slots=True)
class RaiseSampling:
    """Decode a larger share of what follows a hit."""

    rate: float  # share of tokens, 0..1
    scope: SamplingScope = "request"
    tokens: int = 256


@dataclass(frozen=True, slots=True)
class StopGeneration:
    """End the sequence a rule hit in; in shadow it is only told that it would have been ended."""

    mode: StopMode = "shadow"
    min_fidelity: float | None = None  # FVE a hit needs to count; None: any, unscored too
    min_hits: int = 1
    within_tokens: int | None = None  # generated after the hit at most; None: as soon as may be


@dataclass(frozen=True, slots=True)
class Actions:
    """Everything a rule asks for on a match."""

    routes: tuple[str, ...] = ()
    raise_sampling: RaiseSampling | None = None
    stop_generation: StopGeneration | None = None
    tags: tuple[str, ...] = ()
    capture: bool = False  # keep the vectors
