"""The tap for a serving stack that is not known here: its own loop tells what it computes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nae_monitor.capture.context import RequestContext, scope_context
from nae_monitor.capture.listener import CaptureListener
from nae_monitor.capture.sink import Sink
from nae_monitor.health import Health
from nae_monitor.records import Phase, Request, RowBatch
from nae_monitor.settings import CaptureSettings


@dataclass(slots=True)
class _Sequence:
    request: Request
    token_ids: list[int]
    prompt_tokens: int
    next_position: int
    muted: bool  # the listener failed at its start: it hears of the end only


class Tap:
    """Four calls from a decode loop: :meth:`start`, :meth:`rows`, :meth:`tokens`, :meth:`end`.

    No method raises or waits: what is wrong with a call is counted, and the request's verdict is
    then *undecided*. Any number of threads may call; the calls of one request come in order. Made
    by :meth:`nae_monitor.Monitor.tap`.

    Args:
        layer: K; rows are ``hidden_states[K]``, the output of block K - 1.
        settings: phases and the first position wanted.
        listener: is told, on the calling thread.
        health: counts ``tokens.seen``, ``tokens.excluded``, ``tokens.cached`` and ``dropped.*``.
        model_name: goes into every request.
    """

    def __init__(
        self,
        *,
        layer: int,
        settings: CaptureSettings,
        listener: CaptureListener,
        health: Health,
        model_name: str,
    ) -> None:
        self.layer = layer
        device = torch.device("cpu")  # rows stay on the device they come on
        self._sink = Sink(listener, health, settings, layer, model_name, device)
        self._health = health
        self._lock = threading.Lock()
        self._open: dict[str, _Sequence] = {}

    def start(
        self,
        prompt_token_ids: Sequence[int],
        *,
        request_id: str | None = None,
        cached_tokens: int = 0,
    ) -> str:
        """A sequence begins. Its session, tenant and trace are those of ``monitor.request``.

        Args:
            prompt_token_ids: without padding.
            request_id: None: the scope's, else a fresh UUID.
            cached_tokens: leading ones whose keys and values a cache holds, so that no row of
                theirs will come.

        Returns:
            The id for the other calls, and for the verdict.
        """
        context = scope_context()
        if context is None or request_id is not None:
            known = context or RequestContext()
            context = RequestContext(
                request_id, known.session_id, known.tenant, known.trace, known.attributes
            )
        request = context.requests(1, 1, self._sink.model_name)[0]
        name = request.request_id
        with self._health.guard("capture.start"):
            prompt = [int(token) for token in prompt_token_ids]
            with self._lock:
                again = self._open.pop(name, None)
                sequence = _Sequence(request, prompt, len(prompt), cached_tokens, False)
                self._open[name] = sequence
            if again is not None:
                self._sink.call("finished", self._sink.listener.request_finished, name)
            started = self._sink.listener.request_started
            sequence.muted = not self._sink.call("started", started, request, tuple(prompt))
            if cached_tokens:
                # Counted before the start they would be taken for tokens that nobody knows.
                self._health.count("tokens.seen", cached_tokens, request_id=name)
                self._health.count("tokens.cached", cached_tokens, request_id=name)
        return name

    def rows(self, request_id: str, first_position: int, vectors: torch.Tensor) -> None:
        """Vectors ``[n, d]`` of the tokens from ``first_position`` on, on any device.

        The tokens must be known by then. Positions that came before are passed over, as after a
        preemption; positions that were left out are counted as dropped. The tensor is copied.
        """
        with self._health.guard("capture.pass"):
            with self._lock:
                sequence = self._open.get(request_id)
            count = len(vectors)
            if sequence is None:
                self._health.count("dropped.unknown_request", count)
                return
            end = first_position + count
            if first_position < 0 or end > len(sequence.token_ids) or vectors.dim() != 2:
                self._count("tokens.seen", count, request_id)
                self._count("dropped.not_mapped", count, request_id)
                return
            first = max(first_position, sequence.next_position)
            left_out = first - sequence.next_position
            sequence.next_position = max(sequence.next_position, end)
            self._count("tokens.seen", left_out + max(0, end - first), request_id)
            self._count("dropped.not_captured", left_out, request_id)
            self._tell(sequence, first, end, vectors[first - first_position :])

    def tokens(self, request_id: str, token_ids: Sequence[int]) -> None:
        """New completion tokens, in order, the one that ends the sequence included."""
        with self._health.guard("capture.end"):
            with self._lock:
                sequence = self._open.get(request_id)
            if sequence is None or not token_ids:
                return
            new = tuple(int(token) for token in token_ids)
            sequence.token_ids.extend(new)
            if not sequence.muted and not self._sink.quiet:
                self._sink.call("tokens", self._sink.listener.tokens, request_id, new)

    def end(self, request_id: str) -> None:
        """The sequence is over, however it ended; call it in a ``finally``. Safe to call twice.

        Tokens that never had a row are counted as dropped, but for the one sampled last.
        """
        with self._health.guard("capture.end"):
            with self._lock:
                sequence = self._open.pop(request_id, None)
            if sequence is None:
                return
            missing = len(sequence.token_ids) - 1 - sequence.next_position
            self._count("tokens.seen", missing, request_id)
            self._count("dropped.not_captured", missing, request_id)
            self._sink.call("finished", self._sink.listener.request_finished, request_id)

    def _tell(self, sequence: _Sequence, first: int, end: int, vectors: torch.Tensor) -> None:
        settings, prompt = self._sink.settings, sequence.prompt_tokens
        low = max(first, settings.min_position)
        if Phase.PROMPT.value not in settings.phases:
            low = max(low, prompt)
        high = end if Phase.COMPLETION.value in settings.phases else min(end, prompt)
        wanted, request_id = max(0, high - low), sequence.request.request_id
        self._count("tokens.excluded", end - first - wanted, request_id)
        if not wanted:
            return
        if sequence.muted or self._sink.quiet:
            reason = "listener_failed" if sequence.muted else "circuit_open"
            self._count(f"dropped.{reason}", wanted, request_id)
            return
        phases = (Phase.PROMPT if p < prompt else Phase.COMPLETION for p in range(low, high))
        batch = RowBatch(
            requests=(sequence.request,),
            request_index=(0,) * wanted,
            positions=tuple(range(low, high)),
            token_ids=tuple(sequence.token_ids[low:high]),
            phases=tuple(phases),
            layer=self.layer,
            vectors=vectors[low - first : high - first].detach().clone(),
        )
        if not self._sink.call("rows", self._sink.listener.rows, batch):
            self._count("dropped.listener_failed", wanted, request_id)

    def _count(self, name: str, amount: int, request_id: str) -> None:
        if amount > 0:
            self._health.count(name, amount, request_id=request_id)
