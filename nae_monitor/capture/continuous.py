"""Continuous batching of transformers: from mixed forward passes to rows of single requests.

A pass of ``generate_batch`` or ``transformers serve --continuous-batching`` holds whole prompts,
pieces of prompts and single new tokens of many requests side by side, ``[1, T, d]``. Which rows
are whose is read from the batch processor before the pass; nothing on the device is waited for.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nae_monitor.capture.context import RequestContext, scope_context
from nae_monitor.capture.listener import Stopping
from nae_monitor.capture.mixed_rows import MixedRows, plan_rows
from nae_monitor.capture.sink import Sink
from nae_monitor.capture.stopping import COMPONENT
from nae_monitor.errors import UnsupportedError
from nae_monitor.records import Request

log = logging.getLogger("nae_monitor")

NAMES_LIMIT = 10_000  # requests that were handed in and have not run yet; the oldest go first


@dataclass(slots=True)
class Track:
    """A request that has been announced."""

    request: Request
    state: Any  # transformers' RequestState; another one after an eviction from the cache
    prompt_tokens: int
    told_tokens: int
    next_position: int = 0
    before_watch: bool = False  # handed in unseen: what came before may be more than cached
    muted: bool = False  # the listener failed when it was announced: it hears of its end only
    stop: tuple[str, int, int] | None = None  # the arguments of the stop that was carried out


@dataclass(slots=True)
class Board:
    """What is known of one manager's requests, by transformers' request id."""

    names: dict[str, Request] = field(default_factory=dict)
    tracks: dict[str, Track] = field(default_factory=dict)
    checked: bool = False  # whether the order of a pass was compared with the model's own input


class _Pass(threading.local):
    """The pass that runs in this thread."""

    running = False
    seen = False  # whether the watched block ran in it
    pending: MixedRows | None = None


class ContinuousCapture:
    """Everything that one tap knows of the continuous batching of its model.

    The methods are called around those of transformers' manager and batch processor, on their
    threads; see :mod:`nae_monitor.capture.continuous_patch`.
    """

    def __init__(self, sink: Sink, stopping: Stopping | None) -> None:
        self._sink = sink
        self._stopping = stopping
        self._boards: weakref.WeakKeyDictionary[Any, Board] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()
        self._pass = _Pass()
        self._closed = False
        self._told_blind = False
        self._distrusted = False  # a pass was not what was planned: no row is told any more

    # On the thread that hands requests in.

    def refuse_unsupported(self, manager: Any) -> None:
        """Raise :class:`UnsupportedError` for a manager whose passes hooks cannot see."""
        config = manager.continuous_batching_config
        compiled = (config.varlen_compile_config, config.decode_compile_config)
        reason = None
        if config.use_async_batching:
            reason = "use_async_batching: tokens are known a pass late; set it to False"
        elif any(config.cuda_graph_booleans):
            reason = "CUDA graphs replay without hooks; set use_cuda_graph=False"
        elif any(item is not None for item in compiled):
            reason = "compiled passes skip hooks; leave the compile configurations out"
        elif getattr(manager.model, "_device_mesh", None) is not None:
            reason = "tensor parallel models are not supported"
        if reason is not None:
            raise UnsupportedError(f"continuous batching cannot be monitored: {reason}")

    def reserve(self, prompts: int, per_prompt: int) -> list[Request] | None:
        """Names for requests handed in together, in their order; None where that failed."""
        names = None
        with self._sink.health.guard("capture.start"):
            context = scope_context() or RequestContext()
            names = list(context.requests(prompts, per_prompt, self._sink.model_name))
        return names

    def name(self, manager: Any, own_id: str, per_prompt: int, names: Sequence[Request]) -> None:
        """Remember who a request and the children forked from it are."""
        with self._sink.health.guard("capture.start"), self._lock:
            known = self._board(manager).names
            known[own_id] = names[0]
            for child in range(per_prompt - 1):
                known[f"{own_id}__child#{child}"] = names[child + 1]
            while len(known) > NAMES_LIMIT:
                known.pop(next(iter(known)))

    def named(self, own_id: str | None, per_prompt: int) -> list[Request] | None:
        """Names for one request that the caller gave an id: the scope's, else that id."""
        names = None
        with self._sink.health.guard("capture.start"):
            context = scope_context() or RequestContext(own_id)
            names = list(context.requests(1, per_prompt, self._sink.model_name))
        return names

    # On the thread of the generation loop.

    def begin(self, processor: Any) -> None:
        """A pass is about to run: announce its new requests and work out its rows."""
        with self._sink.health.guard("capture.pass"), self._lock:
            self._pass.pending, self._pass.seen = None, False
            if self._closed:
                return
            self._pass.running = True
            board = self._board(processor)
            batch = processor.inputs_and_outputs.requests_in_batch
            tracks = [self._track(board, future.state) for future in batch]
            check, board.checked = not board.checked, True
            try:
                self._pass.pending = plan_rows(batch, tracks, self._sink, check=check)
            except Exception:
                for future, track in zip(batch, tracks, strict=True):
                    name, amount = track.request.request_id, future.query_length
                    self._sink.health.count("dropped.not_mapped", amount, request_id=name)
                raise

    def running_here(self) -> bool:
        """Whether this thread is inside a pass."""
        return self._pass.running

    def before_pass(self, input_ids: torch.Tensor | None, positions: torch.Tensor | None) -> None:
        """Hold the planned rows to what the model really gets, in each manager's first pass."""
        pending = self._pass.pending
        if pending is None:
            return
        if not pending.checked:
            ids = None if input_ids is None else input_ids.reshape(-1).tolist()
            if ids != pending.all_token_ids:
                self._distrusted = True
            elif positions is not None:
                self._distrusted |= positions.reshape(-1).tolist() != pending.all_positions
            if self._distrusted:
                self._tell_blind("blind.not_mapped", "holds other tokens than its scheduler says")
        if self._distrusted:
            self._drop("not_mapped")

    def after_block(self, output: Any) -> None:
        """Copy the rows out of the block's output ``[1, T, d]``."""
        with self._lock:
            self._pass.seen = True
            pending = self._pass.pending
            if pending is None or self._closed:
                return
            if not len(pending):
                self._pass.pending = None
                return
            if self._sink.quiet:
                self._drop("circuit_open")
                return
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.dim() != 3 or hidden.shape[0] * hidden.shape[1] != pending.total_rows:
                raise ValueError("the block's output is not [1, tokens, width]")
            batch = pending.batch(hidden.detach().reshape(-1, hidden.shape[-1]), self._sink.layer)
            if self._sink.call("rows", self._sink.listener.rows, batch):
                self._pass.pending = None
            else:
                self._drop("listener_failed")

    def end(self, processor: Any) -> None:
        """The pass is over; rows nobody took are counted, and a block that was not seen is told."""
        with self._sink.health.guard("capture.end"), self._lock:
            planned, self._pass.running = self._pass.pending, False
            self._drop("not_captured")
            if planned is not None and not self._pass.seen:
                self._tell_blind("blind.no_rows", "ran and the watched block was not seen")

    def before_update(self, processor: Any) -> list[Any]:
        """The sampled tokens are about to be recorded; ends the requests that must end.

        Returns:
            The requests of the pass that got a token.
        """
        batch: list[Any] = []
        with self._sink.health.guard("capture.end"), self._lock:
            batch = [f for f in processor.inputs_and_outputs.requests_in_batch if f.has_new_token]
            if self._stopping is not None and not self._sink.health.is_open(COMPONENT):
                with self._sink.health.guard(COMPONENT):
                    for future in batch:
                        self._stop(self._board(processor), future.state)
        return batch

    def after_update(self, processor: Any, batch: Sequence[Any]) -> None:
        """Tell the tokens that were sampled, and end what is over."""
        with self._sink.health.guard("capture.end"), self._lock:
            board = self._board(processor)
            for future in batch:
                track = board.tracks.get(future.state.request_id)
                if track is not None and track.state is future.state:
                    self._tell(track)
        self.reconcile(processor)

    def reconcile(self, processor: Any) -> None:
        """End every announced request that the scheduler does not know any more."""
        with self._sink.health.guard("capture.end"), self._lock:
            board = self._board(processor)
            scheduler = processor.scheduler
            over = [
                own_id
                for own_id in board.tracks
                if own_id not in scheduler.active_requests
                and own_id not in scheduler.waiting_requests
            ]
            for own_id in over:
                self._finish(board.tracks.pop(own_id))

    def knows(self, owner: Any) -> bool:
        """Whether requests of this manager or batch processor were seen."""
        return owner.output_router in self._boards

    def close(self) -> None:
        """End everything; whatever runs on is not captured."""
        with self._lock:
            self._closed = True
            for board in list(self._boards.values()):
                while board.tracks:
                    self._finish(board.tracks.popitem()[1])

    def _board(self, owner: Any) -> Board:
        # A manager and its batch processor share the router of their outputs.
        return self._boards.setdefault(owner.output_router, Board())

    def _track(self, board: Board, state: Any) -> Track:
        """The request's track; announced if it is new."""
        track = board.tracks.get(state.request_id)
        if track is not None and track.state is not state:
            if state._true_initial_tokens:  # evicted from the cache; it is computed again
                track.state = state
            else:  # cancelled, and the same id handed in anew
                self._finish(board.tracks.pop(state.request_id))
                track = None
        if track is None:
            track = board.tracks[state.request_id] = self._announce(board, state)
        return track

    def _announce(self, board: Board, state: Any) -> Track:
        request = board.names.pop(state.request_id, None)
        unseen = request is None
        if request is None:
            own_id = None if state.request_id.startswith("req_") else state.request_id
            request = RequestContext(own_id).requests(1, 1, self._sink.model_name)[0]
        prompt = state.initial_tokens
        count = state._true_initial_tokens or len(prompt)
        track = Track(request, state, count, count, before_watch=unseen)
        listener = self._sink.listener
        told = self._sink.call("started", listener.request_started, request, tuple(prompt[:count]))
        track.muted = not told
        self._tell(track)
        return track

    def _tell(self, track: Track) -> None:
        state = track.state
        known = len(state.initial_tokens)
        if track.told_tokens >= known:
            new = state.generated_tokens[track.told_tokens - known :]
        else:
            new = (state.initial_tokens + state.generated_tokens)[track.told_tokens :]
        if new:
            track.told_tokens += len(new)
            if not self._sink.quiet and not track.muted:
                listener = self._sink.listener
                self._sink.call("tokens", listener.tokens, track.request.request_id, tuple(new))

    def _finish(self, track: Track) -> None:
        listener = self._sink.listener
        self._confirm(track)
        self._sink.call("finished", listener.request_finished, track.request.request_id)

    def _stop(self, board: Board, state: Any) -> None:
        track = board.tracks.get(state.request_id)
        if track is None or self._stopping is None or track.stop is not None:
            return
        length = len(state.initial_tokens) + len(state.generated_tokens) + 1
        place = (track.request.request_id, length, length - track.prompt_tokens)
        if self._stopping.stops(*place):
            # The token sampled just now is the last; the result is delivered as ever.
            state._new_tokens_limit = len(state.generated_tokens) + 1
            track.stop = place

    def _confirm(self, track: Track) -> None:
        generated = track.state.generated_tokens
        if self._stopping is None or track.stop is None or not generated:
            return
        if generated[-1] not in track.state._eos_token_ids:
            with self._sink.health.guard(COMPONENT):
                self._stopping.stopped(*track.stop)

    def _tell_blind(self, counter: str, what: str) -> None:
        self._sink.health.count(counter)
        if not self._told_blind:
            self._told_blind = True
            log.error("a continuous batch %s (%s)", what, counter)

    def _drop(self, reason: str) -> None:
        if self._pass.pending is not None:
            if len(self._pass.pending):
                self._sink.health.count_each(f"dropped.{reason}", self._pass.pending.by_request())
            self._pass.pending = None
