"""From passes to rows: requests under way, each row once, and the ledger of each request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

import torch

from nae_monitor.capture import CaptureListener
from nae_monitor.health import Health
from nae_monitor.integrations.engines.passes import Part
from nae_monitor.records import Phase, Request, RowBatch
from nae_monitor.settings import CaptureSettings


@dataclass(frozen=True, slots=True)
class Begun:
    """A request that an engine hands out for the first time."""

    engine_id: str  # as the engine names it; the request's own id may be shorter
    request: Request
    prompt_token_ids: tuple[int, ...]
    prompt_tokens: int
    stop_token_ids: frozenset[int]  # that end its answer
    computed_tokens: int = 0  # leading ones that a cache already holds
    lost: str | None = None  # why no row of it can be told


@dataclass(slots=True)
class Live:
    """One request under way."""

    request: Request
    prompt_tokens: int
    stop_token_ids: frozenset[int]
    next_position: int = 0  # every position below it was seen
    ended: bool = False  # its last token was seen; what still comes is the scheduler running ahead
    sampled: int | None = None  # the newest token, which no pass has taken in yet
    lost: str | None = "listener_failed"  # why no row of it is told; None: they are


class _Row(NamedTuple):
    """Sorts by request; of one request, stably, as it was computed."""

    owner: int  # index into the requests
    position: int
    token_id: int
    phase: Phase
    place: int  # among the vectors


@dataclass(slots=True)
class _Rows:
    """Rows that the settings ask for."""

    requests: list[Request] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)  # by request id: into the requests
    rows: list[_Row] = field(default_factory=list)
    spoken: dict[str, list[int]] = field(default_factory=dict)  # by request id


class Tracker:
    """Maps the passes of one engine to rows. For one thread.

    Requests go by the engine's ids here, and by their own towards the listener and the ledgers.

    Args:
        listener: is told everything.
        health: counts ``tokens.seen``, ``tokens.excluded``, ``tokens.cached``, ``dropped.*`` a
            request, and ``capture.recomputed_tokens`` and ``capture.extra_tokens`` in all.
        settings: phases and the first position wanted.
        layer: K.
    """

    def __init__(
        self,
        listener: CaptureListener,
        health: Health,
        settings: CaptureSettings,
        *,
        layer: int,
    ) -> None:
        self._listener = listener
        self._health = health
        self._settings = settings
        self._layer = layer
        self._live: dict[str, Live] = {}  # by the engine's id

    @property
    def live(self) -> Sequence[str]:
        """Requests under way, by the engine's ids."""
        return tuple(self._live)

    def begin(self, new: Begun) -> None:
        """Note a request the scheduler hands out.

        A known one comes again after it was preempted, and goes on.
        """
        if new.engine_id in self._live:
            return
        live = Live(new.request, new.prompt_tokens, new.stop_token_ids)
        self._live[new.engine_id] = live
        try:
            self._listener.request_started(new.request, new.prompt_token_ids)
        finally:
            # Tokens counted as cached before a request starts are taken for ones nobody knows.
            self._cached(live, new.computed_tokens)
        live.lost = new.lost

    def sampled(self, request_id: str, token_id: int) -> None:
        """Note the token that was sampled last."""
        live = self._live.get(request_id)
        if live is not None:
            live.sampled = token_id

    def stop_token(self, request_id: str) -> int | None:
        """A token that ends the request's answer; None where nothing does (``ignore_eos``)."""
        live = self._live.get(request_id)
        return min(live.stop_token_ids, default=None) if live is not None else None

    def finish(self, request_id: str) -> None:
        """End a request: complete, aborted, or failed."""
        live = self._live.pop(request_id, None)
        if live is None:
            return
        try:
            if live.lost is None and not live.ended and live.sampled is not None:
                self._listener.tokens(live.request.request_id, (live.sampled,))
        finally:
            self._listener.request_finished(live.request.request_id)

    def complete(self, request_id: str, output_ids: Sequence[int]) -> None:
        """End a request whose whole answer is known; tell what no pass took in.

        Tokens that never had a row are counted as dropped, but for the one sampled last.
        """
        live = self._live.pop(request_id, None)
        if live is None:
            return
        untold = tuple(output_ids[max(0, live.next_position - live.prompt_tokens) :])
        missing = live.prompt_tokens + len(output_ids) - 1 - live.next_position
        if missing > 0 and not live.ended:
            self._count(live, "tokens.seen", missing)
            self._count(live, f"dropped.{live.lost or 'not_captured'}", missing)
        try:
            if live.lost is None and not live.ended and untold:
                self._listener.tokens(live.request.request_id, untold)
        finally:
            self._listener.request_finished(live.request.request_id)

    def give_up(self, request_id: str, reason: str) -> None:
        """Tell no further row of a request: which pass computed what is not known any more."""
        live = self._live.get(request_id)
        if live is not None and live.lost is None:
            live.lost = reason

    def take(
        self,
        parts: Sequence[Part],
        token_ids: Sequence[int],
        rows: Callable[[list[int]], torch.Tensor],
    ) -> None:
        """Tell the rows of one pass, or of several side by side.

        Args:
            parts: whose they are; of one request there may be several, in order.
            token_ids: the input tokens.
            rows: gives the vectors ``[n, d]`` at n places among those of the tokens.
        """
        found = _Rows()
        for part in parts:
            live = self._live.get(part.request_id)
            if live is None:
                self._health.count("dropped.unknown_request", part.count)
            elif live.lost is not None:
                self.lose([part], live.lost)
            else:
                self._part(live, part, token_ids, found)
        try:
            for request_id, spoken in found.spoken.items():
                self._listener.tokens(request_id, tuple(spoken))
            if found.rows:
                found.rows.sort(key=attrgetter("owner"))
                self._listener.rows(self._batch(found, rows([row.place for row in found.rows])))
        except Exception:
            names = [request.request_id for request in found.requests]
            amounts = Counter(names[row.owner] for row in found.rows)
            self._health.count_each("dropped.listener_failed", amounts)
            raise

    def lose(self, parts: Sequence[Part], reason: str) -> None:
        """Count the rows of a pass that cannot be told, as ``dropped.REASON``."""
        for part in parts:
            live = self._live.get(part.request_id)
            end = part.start + part.count
            if live is None or live.ended or end <= live.next_position:
                continue
            lost, live.next_position = end - live.next_position, end
            self._count(live, "tokens.seen", lost)
            self._count(live, f"dropped.{reason}", lost)

    def _part(self, live: Live, part: Part, token_ids: Sequence[int], found: _Rows) -> None:
        if live.ended:
            self._health.count("capture.extra_tokens", part.count)
            return
        self._cached(live, part.start)
        again = min(part.count, live.next_position - part.start)
        if again:
            self._health.count("capture.recomputed_tokens", again)
        if again == part.count:
            return
        ids = list(token_ids[part.offset + again : part.offset + part.count])
        start = part.start + again
        end = _end_of_answer(live, start, ids)
        if end is not None:
            # The last token of an answer is never fed in earnest: the scheduler ran ahead.
            live.ended = True
            self._health.count("capture.extra_tokens", len(ids) - end)
        rows = ids[:end]
        live.next_position = start + len(rows)
        spoken = ids[max(0, live.prompt_tokens - start) : None if end is None else end + 1]
        if spoken:
            found.spoken.setdefault(live.request.request_id, []).extend(spoken)
        if rows:
            self._keep(live, start, rows, part.offset + again, found)

    def _keep(self, live: Live, start: int, ids: Sequence[int], offset: int, found: _Rows) -> None:
        self._count(live, "tokens.seen", len(ids))
        settings, kept = self._settings, 0
        name = live.request.request_id
        for number, token_id in enumerate(ids):
            position = start + number
            phase = Phase.PROMPT if position < live.prompt_tokens else Phase.COMPLETION
            if position < settings.min_position or phase.value not in settings.phases:
                continue
            kept += 1
            if name not in found.index:
                found.index[name] = len(found.requests)
                found.requests.append(live.request)
            found.rows.append(_Row(found.index[name], position, token_id, phase, offset + number))
        self._count(live, "tokens.excluded", len(ids) - kept)

    def _cached(self, live: Live, start: int) -> None:
        """Tokens before ``start`` that no pass computed came out of a cache."""
        hits = start - live.next_position
        if hits > 0:
            live.next_position = start
            self._count(live, "tokens.seen", hits)
            self._count(live, "tokens.cached", hits)

    def _count(self, live: Live, name: str, amount: int) -> None:
        if amount:
            self._health.count(name, amount, request_id=live.request.request_id)

    def _batch(self, found: _Rows, vectors: torch.Tensor) -> RowBatch:
        return RowBatch(
            requests=tuple(found.requests),
            request_index=tuple(row.owner for row in found.rows),
            positions=tuple(row.position for row in found.rows),
            token_ids=tuple(row.token_id for row in found.rows),
            phases=tuple(row.phase for row in found.rows),
            layer=self._layer,
            vectors=vectors,
        )


def _end_of_answer(live: Live, start: int, ids: Sequence[int]) -> int | None:
    """Index of the first stop token of the answer in ``ids``, which begin at ``start``."""
    for number, token_id in enumerate(ids):
        if start + number >= live.prompt_tokens and token_id in live.stop_token_ids:
            return number
    return None
