"""Hands the rows of each pass on once the device is done with it, and never waits for that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nae_monitor.integrations.engines.buffer import Marker
from nae_monitor.integrations.engines.passes import Pass
from nae_monitor.integrations.engines.tracker import Tracker

MAX_WAITING = 64  # passes and notes the device may be behind; vLLM itself runs two ahead


@dataclass(frozen=True, eq=False, slots=True)
class _Waiting:
    taken: Pass
    vectors: torch.Tensor  # [tokens, d], on the device
    facts: torch.Tensor  # int64 [tokens + 1], on the CPU: input tokens, and whether it is blind
    event: Any  # set when the facts are there; None: they are


class Handover:
    """Passes, and notes of beginnings and ends, in the order of the engine's steps.

    On a GPU a pass's tokens are not known to the CPU when the pass is launched. They are copied
    behind it, and the pass is handed on in a later step, when they have arrived.

    Args:
        tracker: is told.
        rows: the tap's buffer.
        lost: is told passes that wrote nothing.
    """

    def __init__(self, tracker: Tracker, rows: torch.Tensor, lost: Callable[[int], None]) -> None:
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
        self._line.append(tell)

    def take(self, taken: Pass) -> None:
        """Take the buffer's rows, which the next pass will write over."""
        tokens = min(taken.tokens, len(self._rows))
        facts = torch.cat([taken.input_ids.to(torch.int64), self._marker.blind().to(torch.int64)])
        event = None
        if self._rows.is_cuda:
            facts = facts.to("cpu", non_blocking=True)
            event = torch.Event("cuda")
            event.record()
        self._line.append(_Waiting(taken, self._rows[:tokens].clone(), facts, event))

    def hand_on(self, *, all_of_it: bool = False, quiet: bool = False) -> None:
        """Hand on what has arrived.

        Args:
            all_of_it: count what has not arrived as dropped.
            quiet: the circuit is open: count rows, and tell notes alone.
        """
        while self._line:
            item = self._line[0]
            arrived = not isinstance(item, _Waiting) or item.event is None or item.event.query()
            if not (arrived or all_of_it or len(self._line) > MAX_WAITING):
                return
            self._line.popleft()
            if not isinstance(item, _Waiting):
                item()
            elif quiet or not arrived:
                self._tracker.lose(item.taken.parts, "circuit_open" if quiet else "device_behind")
            else:
                self._pass(item)

    def _pass(self, item: _Waiting) -> None:
        *token_ids, blind = item.facts.tolist()
        if blind:
            self._lost(item.taken.tokens)
            self._tracker.lose(item.taken.parts, "not_captured")
            return

        if item.vectors.is_cuda:
            # Made on the stream that runs the model; read on the one that is current here.
            item.vectors.record_stream(torch.cuda.current_stream())

        def rows(places: Sequence[int]) -> torch.Tensor:
            if len(places) == len(item.vectors):
                return item.vectors
            # Pinned: from other memory the copy to the device would wait for what runs there.
            index = torch.tensor(places, pin_memory=item.vectors.is_cuda)
            return item.vectors.index_select(0, index.to(item.vectors.device, non_blocking=True))

        self._tracker.take(item.taken.parts, token_ids, rows)
