"""A worker's side of turns: frames of serving processes into the pipeline, outcomes out of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nae_monitor.detect import Decision
from nae_monitor.health import Health
from nae_monitor.pipeline.intake import Intake
from nae_monitor.pipeline.requests import LIVE_LIMIT, VERDICT_LIMIT, Concluded
from nae_monitor.pipeline.turn import StopOrder, Turn
from nae_monitor.placement.carrier import Captured
from nae_monitor.placement.frame import MAX_HEADER_BYTES, Frame, FrameError, Kind
from nae_monitor.placement.ledgers import Ledgers
from nae_monitor.placement.orders import Outcome, StopTurn
from nae_monitor.placement.turns import Begin, End, Rows, Stopped
from nae_monitor.records import Activation, Request
from nae_monitor.token_text import TokenText

FINDINGS_BYTES = 3 * MAX_HEADER_BYTES // 4  # of one outcome; the rest is for losses and ledger
UNKNOWN = "its worker does not know of it"
GONE = "its serving process went away"
FRAMES_LOST = "frames of it were lost"
IN_USE = "its id was in use in another serving process"


@dataclass(eq=False, slots=True)
class Guest:
    """One serving process, from its greeting to its end."""

    process: str
    turns: dict[int, Turn] = field(default_factory=dict)  # not over yet, by number
    refused: dict[int, str] = field(default_factory=dict)  # turns that were not taken, and why


Answer = Callable[[Guest, Kind, dict[str, Any]], None]
"""Sends a message to a serving process; called from any thread, never waits."""


class Reception:
    """Takes frames on one thread; answers come from the pipeline's background thread."""

    def __init__(
        self, captured: Captured, intake: Intake, text: TokenText, health: Health, answer: Answer
    ) -> None:
        self._captured = captured
        self._intake = intake
        self._text = text
        self._health = health
        self._answer = answer
        self._lock = threading.Lock()
        self._ledgers = Ledgers(health)
        self._owners: dict[Turn, tuple[Guest, int]] = {}
        self._users: OrderedDict[str, str] = OrderedDict()  # request id to its process
        self._live: dict[str, int] = {}  # turns that are not worked off, by request id

    @property
    def is_crowded(self) -> bool:
        """Whether the pipeline has so much to do that more could find no room."""
        return self._intake.is_crowded

    # -- the receiving thread -----------------------------------------------------------------

    def take(self, guest: Guest, frame: Frame) -> None:
        """A frame about a turn.

        Raises:
            FrameError: it does not hold what its kind asks for, or names a turn's number anew.
        """
        match frame.kind:
            case Kind.BEGIN:
                self._begin(guest, Begin.read(frame))
            case Kind.ROWS:
                self._rows(guest, Rows.read(frame))
            case Kind.END:
                self._end(guest, End.read(frame))
            case _:
                raise FrameError(f"a worker is not told {frame.kind.name}")

    def torn(self, guest: Guest, number: int | None = None) -> None:
        """Frames of a guest went missing: of one turn, or nobody can tell whose."""
        for one, turn in guest.turns.items():
            if number in (None, one):
                self._intake.lost(turn, FRAMES_LOST)

    def abandon(self, guest: Guest, number: int, finished_unix_ns: int) -> None:
        """No more comes of a turn: it is judged as far as it came, and undecided at best."""
        turn = guest.turns.pop(number)
        self._intake.lost(turn, GONE)
        self._intake.end(turn, finished_unix_ns)

    def leave(self, guest: Guest, finished_unix_ns: int, why: str = GONE) -> None:
        """A guest is gone: its turns are judged as far as they came, and undecided at best."""
        for turn in guest.turns.values():
            self._intake.lost(turn, why)
            self._intake.end(turn, finished_unix_ns)
        guest.turns.clear()
        guest.refused.clear()

    def _begin(self, guest: Guest, begin: Begin) -> None:
        number, request = begin.turn, begin.request
        if number in guest.turns or number in guest.refused:
            raise FrameError("the number of a turn is in use")
        why = self._refusal(guest, request)
        if why:
            self._health.count("placement.refused_turns")
            guest.refused[number] = why
            while len(guest.refused) > LIVE_LIMIT:
                guest.refused.pop(next(iter(guest.refused)))
            return
        with self._lock:
            turn = self._intake.begin(request, begin.prompt_ids, self._text)
            if begin.prompt_left_out:
                turn.text_known = False
            guest.turns[number] = turn
            self._owners[turn] = (guest, number)
            self._live[request.request_id] = self._live.get(request.request_id, 0) + 1

    def _refusal(self, guest: Guest, request: Request) -> str:
        """Why a turn is not taken; "" where it is, and then its id is the guest's."""
        if len(guest.turns) >= LIVE_LIMIT:
            return "too many turns were under way"
        request_id = request.request_id
        with self._lock:
            user = self._users.get(request_id, guest.process)
            if user != guest.process:
                if self._live.get(request_id):
                    return IN_USE
                self._intake.forget(request_id)
                self._ledgers.forget(request_id)
            self._users[request_id] = guest.process
            self._users.move_to_end(request_id)
            while len(self._users) > VERDICT_LIMIT:
                self._users.popitem(last=False)
        return ""

    def _rows(self, guest: Guest, rows: Rows) -> None:
        if rows.layer != self._captured.layer or rows.vectors.shape[1] != self._captured.d_model:
            raise FrameError("rows of another layer or width than was greeted with")
        turn = guest.turns.get(rows.turn)
        if turn is None:
            self._health.count("placement.rows_of_unknown_turns", len(rows.positions))
            return
        progress = rows.progress
        self._intake.progress(
            turn, progress.start, progress.output_ids, text_known=progress.text_known
        )
        self._intake.rows(turn, _activations(turn.request, rows))

    def _end(self, guest: Guest, end: End) -> None:
        turn = guest.turns.pop(end.turn, None)
        if turn is None:
            why = guest.refused.pop(end.turn, UNKNOWN)
            self._answer(guest, Kind.OUTCOME, Outcome(end.turn, (), {why: 1}, {}).header())
            return
        progress = end.progress
        self._intake.progress(
            turn, progress.start, progress.output_ids, text_known=progress.text_known
        )
        with self._lock:
            self._ledgers.take(turn.request.request_id, guest.process, end.ledger)
        self._intake.lost_elsewhere(turn, end.losses)
        _note_stop(turn, end.stopped)
        turn.rows_seen = end.rows_seen
        self._intake.end(turn, end.finished_unix_ns)

    # -- the pipeline's background thread -----------------------------------------------------

    def concluded(self, turn: Turn, concluded: Concluded | None) -> None:
        """A turn is worked off; None: it was given up before."""
        request_id = turn.request.request_id
        with self._lock:
            owner = self._owners.pop(turn, None)
            left = self._live.get(request_id, 1) - 1
            if left > 0:
                self._live[request_id] = left
            else:
                self._live.pop(request_id, None)
            ledger = self._ledgers.own(request_id)
        if owner is None:
            return
        guest, number = owner
        findings = concluded.findings if concluded else ()
        losses = concluded.losses if concluded else {"it was given up before it finished": 1}
        outcome = Outcome(number, findings, losses, ledger).within(FINDINGS_BYTES)
        self._answer(guest, Kind.OUTCOME, outcome.header())

    def decided(self, decision: Decision) -> None:
        """Tell the serving process of an order to stop."""
        if decision.kind != "stop_generation" or not decision.enforced:
            return
        turn = self._intake.current(decision.request_id)
        with self._lock:
            owner = self._owners.get(turn) if turn is not None else None
        if owner is not None:
            order = StopTurn(owner[1], decision.position, decision.within_tokens)
            self._answer(owner[0], Kind.STOP, order.header())


def _note_stop(turn: Turn, stopped: Stopped) -> None:
    """What the serving process knows of orders to end a turn that is over."""
    turn.asks_brake = stopped.asks
    if stopped.outcome is None:
        return
    turn.stop_order = turn.stop_order or StopOrder([])
    turn.stop_order.outcome = stopped.outcome
    turn.stop_order.ended_at = stopped.ended_at


def _activations(request: Request, rows: Rows) -> list[Activation]:
    return [
        Activation(
            request=request,
            position=rows.positions[i],
            token_id=rows.token_ids[i],
            token="",
            phase=rows.phases[i],
            layer=rows.layer,
            vector=rows.vectors[i],
            reason=rows.reasons[i],
            scores=rows.scores[i],
            captured_unix_ns=rows.captured_unix_ns[i],
        )
        for i in range(len(rows.positions))
    ]
