"""What a worker tells a serving process: outcomes, and what rules ask for."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from nae_monitor.errors import RecordingError
from nae_monitor.placement.contents import Ledger, read_ledger, read_losses
from nae_monitor.placement.fields import Fields
from nae_monitor.placement.frame import Frame, FrameError
from nae_monitor.recording.findings import finding_from_json, finding_to_json
from nae_monitor.records import Finding, FindingState


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a turn came to, now that it is worked off."""

    turn: int
    findings: tuple[Finding, ...]  # of the turn's request, since the turn before
    losses: Ledger  # of the request, all turns: by reason, how often
    ledger: Ledger  # the worker's own counts

    def header(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "turn": self.turn,
            "findings": [finding_to_json(finding) for finding in self.findings],
            "losses": dict(self.losses),
            "ledger": dict(self.ledger),
        }

    def within(self, limit_bytes: int) -> Outcome:
        """With as many findings as fit, matches first; the others become a loss."""
        ordered = sorted(self.findings, key=lambda one: one.state is not FindingState.MATCH)
        told: list[Finding] = []
        for finding in ordered:
            limit_bytes -= len(json.dumps(finding_to_json(finding)))
            if limit_bytes >= 0:
                told.append(finding)
        if len(told) == len(ordered):
            return self
        losses = {**self.losses, "findings were too many to tell": len(ordered) - len(told)}
        return replace(self, findings=tuple(told), losses=losses)

    @classmethod
    def read(cls, frame: Frame) -> Outcome:
        """From a frame; FrameError where it is not one."""
        fields = Fields(frame.header)
        try:
            found = tuple(finding_from_json(one, "a frame") for one in fields.items("findings"))
        except RecordingError as error:
            raise FrameError("findings holds what is not a finding") from error
        return cls(fields.integer("turn"), found, read_losses(fields), read_ledger(fields))


@dataclass(frozen=True, slots=True)
class StopTurn:
    """A rule asks to end a turn's generation."""

    turn: int
    position: int
    within_tokens: int | None

    def header(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "turn": self.turn,
            "position": self.position,
            "within_tokens": self.within_tokens,
        }

    @classmethod
    def read(cls, frame: Frame) -> StopTurn:
        """From a frame; FrameError where it is not one."""
        fields = Fields(frame.header)
        within = fields.integer("within_tokens") if fields.has("within_tokens") else None
        return cls(fields.integer("turn"), fields.integer("position"), within)


Scope = Literal["request", "session", "tenant"]


@dataclass(frozen=True, slots=True)
class RaiseSampling:
    """A rule asks for more of what follows."""

    scope: Scope
    value: str
    rate: float  # share of tokens
    tokens: int

    def header(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "scope": self.scope,
            "value": self.value,
            "rate": self.rate,
            "tokens": self.tokens,
        }

    @classmethod
    def read(cls, frame: Frame) -> RaiseSampling:
        """From a frame; FrameError where it is not one."""
        fields = Fields(frame.header)
        scope = fields.text("scope")
        rate = fields.number("rate", 0, 1)
        if scope not in ("request", "session", "tenant"):
            raise FrameError("scope is none of request, session and tenant")
        tokens = fields.integer("tokens", 1, 10_000_000)
        return cls(cast(Scope, scope), fields.text("value"), rate, tokens)
