"""What a serving process tells of a turn, from its prompt to its ledger.

``turn`` is a number that the serving process gives each turn, unique while it lives. Every reader
checks all it reads and raises FrameError; none allocates more than the frame's own size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nae_monitor.placement.contents import (
    Ledger,
    ids_from_bytes,
    ids_to_bytes,
    member,
    nothing_left,
    read_ledger,
    read_losses,
)
from nae_monitor.placement.fields import Fields, numbers
from nae_monitor.placement.frame import Frame, FrameError
from nae_monitor.placement.greetings import MAX_WIDTH
from nae_monitor.records import Activation, Phase, Request, SampleReason, StopOutcome, TraceRef

MAX_ROWS = 1024  # in one frame
MAX_ATTRIBUTES = 64
MAX_POSITION = 2**31 - 1
MAX_TOKEN_ID = 2**31 - 1
_NUMPY: Mapping[str, Any] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}


@dataclass(frozen=True, slots=True)
class Begin:
    """A turn begins; the body holds its prompt's token ids.

    ``prompt_left_out``: it does not, as they are more than a message may hold.
    """

    turn: int
    request: Request
    prompt_ids: tuple[int, ...]
    prompt_left_out: bool = False

    def header(self) -> dict[str, Any]:
        """As JSON."""
        one = self.request
        trace = one.trace
        return {
            "turn": self.turn,
            "request_id": one.request_id,
            "group_id": one.group_id,
            "model": one.model,
            "session_id": one.session_id,
            "tenant": one.tenant,
            "trace": [f"{trace.trace_id:032x}", f"{trace.span_id:016x}", trace.trace_flags]
            if trace
            else None,
            "started_unix_ns": one.started_unix_ns,
            "attributes": dict(one.attributes),
            "prompt_tokens": len(self.prompt_ids),
            "prompt_left_out": self.prompt_left_out,
        }

    def body(self) -> bytes:
        """The token ids."""
        return ids_to_bytes(self.prompt_ids)

    @classmethod
    def read(cls, frame: Frame) -> Begin:
        """From a frame; FrameError where it is not one."""
        fields = Fields(frame.header)
        attributes = fields.object("attributes", MAX_ATTRIBUTES)
        inner = Fields(attributes)
        request = Request(
            request_id=fields.text("request_id"),
            group_id=fields.text("group_id"),
            model=fields.text("model"),
            session_id=fields.text_or_none("session_id"),
            tenant=fields.text_or_none("tenant"),
            trace=_trace(fields),
            started_unix_ns=fields.integer("started_unix_ns"),
            attributes={name: inner.text(name) for name in attributes},
        )
        amount = fields.integer("prompt_tokens")
        left_out = fields.has("prompt_left_out") and fields.flag("prompt_left_out")
        prompt_ids, rest = ids_from_bytes(frame.body, 0 if left_out else amount)
        nothing_left(rest)
        return cls(fields.integer("turn"), request, prompt_ids, left_out)


@dataclass(frozen=True, slots=True)
class Progress:
    """The completion of a turn as far as it went: what came after ``start`` tokens of it."""

    start: int
    output_ids: tuple[int, ...]
    text_known: bool

    def header(self) -> dict[str, Any]:
        """As JSON, to be part of a message."""
        return {
            "output_start": self.start,
            "output_tokens": len(self.output_ids),
            "text_known": self.text_known,
        }

    @classmethod
    def read(cls, fields: Fields, body: memoryview) -> tuple[Progress, memoryview]:
        """From the front of a body, and what follows."""
        output_ids, rest = ids_from_bytes(body, fields.integer("output_tokens"))
        return cls(fields.integer("output_start"), output_ids, fields.flag("text_known")), rest


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """Chosen rows of one turn; the body holds the new token ids, then the vectors, row by row."""

    turn: int
    progress: Progress
    layer: int
    positions: Sequence[int]
    token_ids: Sequence[int]
    phases: Sequence[Phase]
    reasons: Sequence[SampleReason]
    scores: Sequence[Mapping[str, float]]
    captured_unix_ns: Sequence[int]
    vectors: torch.Tensor  # [n, d], float16 or float32, CPU

    @classmethod
    def of(cls, turn: int, progress: Progress, rows: Sequence[Activation]) -> Rows:
        """From rows of one turn and one dtype; at least one."""
        return cls(
            turn,
            progress,
            rows[0].layer,
            [row.position for row in rows],
            [row.token_id for row in rows],
            [row.phase for row in rows],
            [row.reason for row in rows],
            [row.scores for row in rows],
            [row.captured_unix_ns for row in rows],
            torch.stack([row.vector for row in rows]),
        )

    def header(self) -> dict[str, Any]:
        """As JSON. Scores that are not finite are left out."""
        finite = [
            {name: score for name, score in one.items() if np.isfinite(score)}
            for one in self.scores
        ]
        return {
            "turn": self.turn,
            **self.progress.header(),
            "layer": self.layer,
            "rows": len(self.positions),
            "d_model": int(self.vectors.shape[1]),
            "dtype": "float16" if self.vectors.dtype == torch.float16 else "float32",
            "positions": list(self.positions),
            "token_ids": list(self.token_ids),
            "phases": [phase.value for phase in self.phases],
            "reasons": [reason.value for reason in self.reasons],
            "scores": finite if any(finite) else None,
            "captured_unix_ns": list(self.captured_unix_ns),
        }

    def body(self) -> bytes:
        """Token ids, then vectors."""
        vectors: bytes = np.ascontiguousarray(self.vectors.numpy()).tobytes()
        return ids_to_bytes(self.progress.output_ids) + vectors

    @classmethod
    def read(cls, frame: Frame) -> Rows:
        """From a frame; FrameError where it is not one."""
        fields = Fields(frame.header)
        progress, rest = Progress.read(fields, frame.body)
        amount = fields.integer("rows", 1, MAX_ROWS)
        width = fields.integer("d_model", 1, MAX_WIDTH)
        dtype = fields.text("dtype", 16)
        if dtype not in _NUMPY:
            raise FrameError("dtype is neither float16 nor float32")
        if len(rest) != amount * width * _NUMPY[dtype].itemsize:
            raise FrameError("the vectors are not as long as rows, d_model and dtype say")
        array = np.frombuffer(rest, dtype=_NUMPY[dtype]).reshape(amount, width).copy()
        return cls(
            turn=fields.integer("turn"),
            progress=progress,
            layer=fields.integer("layer", 0, 10_000),
            positions=fields.integers("positions", amount, 0, MAX_POSITION),
            token_ids=fields.integers("token_ids", amount, 0, MAX_TOKEN_ID),
            phases=[member(Phase, one) for one in fields.texts("phases", amount)],
            reasons=[member(SampleReason, one) for one in fields.texts("reasons", amount)],
            scores=_scores(fields, amount),
            captured_unix_ns=fields.integers("captured_unix_ns", amount),
            vectors=torch.from_numpy(array),
        )


@dataclass(frozen=True, slots=True)
class Stopped:
    """What came of orders to end a turn, as the serving process knows it."""

    asks: bool  # whether who generates asks, token by token, if the turn is to end
    outcome: StopOutcome | None
    ended_at: tuple[int, int] | None  # tokens: length and generated


@dataclass(frozen=True, slots=True)
class End:
    """A turn is over; the body holds the rest of its output."""

    turn: int
    progress: Progress
    finished_unix_ns: int
    rows_seen: bool
    losses: Ledger  # by reason, how often
    ledger: Ledger
    stopped: Stopped

    def header(self) -> dict[str, Any]:
        """As JSON."""
        stopped = self.stopped
        return {
            "turn": self.turn,
            **self.progress.header(),
            "finished_unix_ns": self.finished_unix_ns,
            "rows_seen": self.rows_seen,
            "losses": dict(self.losses),
            "ledger": dict(self.ledger),
            "asks_brake": stopped.asks,
            "stop_outcome": stopped.outcome.value if stopped.outcome else None,
            "ended_at": list(stopped.ended_at) if stopped.ended_at else None,
        }

    def body(self) -> bytes:
        """Token ids."""
        return ids_to_bytes(self.progress.output_ids)

    @classmethod
    def read(cls, frame: Frame) -> End:
        """From a frame; FrameError where it is not one."""
        fields = Fields(frame.header)
        progress, rest = Progress.read(fields, frame.body)
        nothing_left(rest)
        return cls(
            turn=fields.integer("turn"),
            progress=progress,
            finished_unix_ns=fields.integer("finished_unix_ns", 1),
            rows_seen=fields.flag("rows_seen"),
            losses=read_losses(fields),
            ledger=read_ledger(fields),
            stopped=_stopped(fields),
        )


def _trace(fields: Fields) -> TraceRef | None:
    if not fields.has("trace"):
        return None
    parts = fields.items("trace", 3)
    trace_id, span_id, flags = parts
    if not (
        isinstance(trace_id, str)
        and isinstance(span_id, str)
        and re.fullmatch("[0-9a-f]{32}", trace_id)
        and re.fullmatch("[0-9a-f]{16}", span_id)
        and type(flags) is int
        and 0 <= flags <= 255
    ):
        raise FrameError("trace is not a span's identity")
    return TraceRef(int(trace_id, 16), int(span_id, 16), flags)


def _stopped(fields: Fields) -> Stopped:
    outcome = None
    if fields.has("stop_outcome"):
        outcome = member(StopOutcome, fields.text("stop_outcome", 16))
        if outcome not in (StopOutcome.BLOCKED, StopOutcome.REFUSED):
            raise FrameError("stop_outcome is neither blocked nor refused")
    ended_at = None
    if fields.has("ended_at"):
        length, generated = fields.integers("ended_at", 2)
        ended_at = (length, generated)
    return Stopped(fields.flag("asks_brake"), outcome, ended_at)


def _scores(fields: Fields, amount: int) -> list[Mapping[str, float]]:
    if not fields.has("scores"):
        return [{}] * amount
    items = fields.items("scores", amount)
    if not all(isinstance(one, dict) and len(one) <= 256 for one in items):
        raise FrameError("scores holds what is not an object")
    return [numbers(one, "scores") for one in items]
