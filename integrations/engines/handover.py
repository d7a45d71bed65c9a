"""Hands rows on once the device is done with their pass, and never waits for that."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from nae_monitor.integrations.engines.buffer import Marker
from nae_monitor.integrations.engines.passes import Part, Pass
from nae_monitor.integrations.engines.tracker import Tracker
from nae_monitor.settings import Settings

MAX_WAITING = 64  # passes and notes the device may be behind; vLLM itself runs two ahead
MAX_GATHERED_ROWS = 1024  # passes with so many between them are handed on at once


@dataclass(frozen=True, eq=False, slots=True)
class _Waiting:
    taken: Pass
    vectors: torch.Tensor  # [tokens, d], on the device
    facts: torch.Tensor  # int64 [tokens + 1], on the CPU: input tokens, and whether it is blind
    event: Any  # set when the facts are there; None: they are
    taken_s: float = field(default_factory=time.monotonic)

    @property
    def has_arrived(self) -> bool:
        return self.event is None or bool(self.event.query())

    @property
    def is_blind(self) -> bool:
        """Whether the pass wrote nothing, once it has arrived."""
        return bool(self.facts[-1])


class Handover:
    """Passes, and notes of beginnings and ends, in the order of the engine's steps.

    On a GPU a pass's tokens are not known to the CPU when the pass is launched. They are copied
    behind it, and the pass is handed on in a later step, when they have arrived.

    Passes are gathered as ``capture.gather_steps`` and ``gather_s`` say, since telling costs far
    more than keeping; a note, and where generations may be stopped each pass, is handed on at once
    with everything before it.

    Args:
        tracker: is told.
        rows: the tap's buffer.
        lost: is told passes that wrote nothing.
        settings: how passes are gathered.
    """

    def __init__(
        self,
        tracker: Tracker,
        rows: torch.Tensor,
        lost: Callable[[int], None],
        settings: Settings,
    ) -> None:
        stops = settings.actions.stop_generation == "enforce"
        self._gather_steps = 1 if stops else settings.capture.gather_steps
        self._gather_s = settings.capture.gather_s
        self._notes = 0  # in the line
        self._tracker = tracker
        self._rows = rows
        self._marker = Marker(rows)
        self._lost = lost
        self._line: deque[_Waiting | Callable[[], None]] = deque()

    def before_pass(self) -> None:
        """Just before the model runs."""
        self._marker.spoil()

    def note(self, tell: Callable[[], None]) -> None:
        """Tell something to the tracker, behind the passes that came before it."""
        self._notes += 1
        self._line.append(tell)

    def take(self, taken: Pass) -> None:
        """Take the buffer's rows, which the next pass will write over."""
        tokens = taken.tokens
        if tokens > len(self._rows):
            self.note(partial(self._tracker.lose, taken.parts, "buffer_full"))
            return
        facts = torch.cat([taken.input_ids.to(torch.int64), self._marker.blind().to(torch.int64)])
        event = None
        if self._rows.is_cuda:
            facts = facts.to("cpu", non_blocking=True)
            event = torch.Event("cuda")
            event.record()
        self._line.append(_Waiting(taken, self._rows[:tokens].clone(), facts, event))

    @property
    def is_due(self) -> bool:
        """Whether enough is gathered, for long enough, or a note is there."""
        line = self._line
        if self._notes or len(line) >= self._gather_steps:
            return True
        passes = [item for item in line if isinstance(item, _Waiting)]
        if sum(len(item.vectors) for item in passes) >= MAX_GATHERED_ROWS:
            return True
        return bool(passes) and time.monotonic() - passes[0].taken_s >= self._gather_s

    def hand_on(self, *, all_of_it: bool = False, quiet: bool = False) -> None:
        """Hand on what has arrived; see :attr:`is_due`.

        Args:
            all_of_it: count what has not arrived as dropped.
            quiet: the circuit is open: count rows, and tell notes alone.
        """
        gathered: list[_Waiting] = []
        try:
            while self._line:
                item = self._line[0]
                if isinstance(item, _Waiting):
                    arrived = item.has_arrived
                    if arrived and not quiet and not item.is_blind:
                        gathered.append(item)
                        self._line.popleft()
                        continue
                    if not (arrived or all_of_it or len(self._line) > MAX_WAITING):
                        break
                self._tell(gathered)  # before what comes behind it; should it fail, that stays
                self._line.popleft()
                if isinstance(item, _Waiting):
                    self._lose(item, quiet)
                else:
                    self._notes -= 1
                    item()
        finally:
            self._tell(gathered)

    def _lose(self, item: _Waiting, quiet: bool) -> None:
        reason = "circuit_open" if quiet else "device_behind"
        if not quiet and item.has_arrived:  # and wrote nothing
            self._lost(item.taken.tokens)
            reason = "not_captured"
        self._tracker.lose(item.taken.parts, reason)

    def _tell(self, gathered: list[_Waiting]) -> None:
        """Tell the rows of passes that have arrived, as of one pass; none of them is kept."""
        if not gathered:
            return
        parts: list[Part] = []
        token_ids: list[int] = []
        for item in gathered:
            offset = len(token_ids)
            parts += [replace(part, offset=part.offset + offset) for part in item.taken.parts]
            token_ids += item.facts.tolist()[:-1]
        vectors = [item.vectors for item in gathered]
        gathered.clear()
        if vectors[0].is_cuda:
            # Made on the stream that runs the model; read on the one that is current here.
            for one in vectors:
                one.record_stream(torch.cuda.current_stream())
        together = vectors[0] if len(vectors) == 1 else torch.cat(vectors)

        def rows(places: list[int]) -> torch.Tensor:
            if places == list(range(len(together))):
                return together
            # Pinned: from other memory the copy to the device would wait for what runs there.
            index = torch.tensor(places, pin_memory=together.is_cuda)
            return together.index_select(0, index.to(together.device, non_blocking=True))

        self._tracker.take(parts, token_ids, rows)
