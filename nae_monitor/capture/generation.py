"""One monitored ``generate`` call: from forward passes to rows with request, position and token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nae_monitor.capture.context import RequestContext, Turn
from nae_monitor.capture.gathering import GatheredSteps, Steps, learn_steps
from nae_monitor.capture.listener import Stopping
from nae_monitor.capture.options import GenerateOptions
from nae_monitor.capture.pending import Pending, flat_rows
from nae_monitor.capture.prompts import read_prompt, to_numpy
from nae_monitor.capture.sequences import Rows, Sequences
from nae_monitor.capture.sink import Sink
from nae_monitor.host_copy import to_device
from nae_monitor.records import Phase

_LOST = object()  # no pass's cache


class Generation:
    """State of one ``generate`` call. Used by one thread.

    Rows of decode steps are handed on a few steps together, unless ``at_once``.
    """

    def __init__(
        self,
        sink: Sink,
        context: RequestContext,
        arguments: Mapping[str, Any],
        options: GenerateOptions,
        *,
        at_once: bool = False,
    ) -> None:
        last = context.last_turn
        prompt = read_prompt(arguments, options, last)
        count = len(prompt.token_ids)
        ends_early = options.other_criteria and count > 1
        self._sink, self._context, self._prompt = sink, context, prompt
        self._prompt_tokens = prompt.real.sum(axis=1)
        self._eos = options.eos_token_ids
        self._sequences = Sequences(
            prompt.token_ids,
            prompt.real,
            prompt.cached_columns,
            options.eos_token_ids,
            options.pad_token_id if ends_early else None,
        )
        if prompt.continues and last is not None:
            self.requests = context.continued(last.requests)
        else:
            self.requests = context.requests(
                prompt.prompts, options.sequences_per_prompt, sink.model_name
            )
        gather_steps = 1 if at_once else sink.settings.gather_steps
        self._gathered = GatheredSteps(gather_steps, sink.settings.gather_s)
        self._pending: Pending | None = None
        self._cache: object = None
        self._passes = 0
        self._blocks = 0  # passes whose block was seen
        self._started: list[str] = []

    def start(self) -> bool:
        """Announce every sequence, and count what a cache keeps out of sight.

        Returns:
            False where the listener failed: it must hear no more of this batch than its end.
        """
        cached = self._prompt.real[:, : self._prompt.cached_columns].sum(axis=1)
        for sequence, request in enumerate(self.requests):
            self._started.append(request.request_id)
            if not self._prompt.continues and cached[sequence]:
                amount = int(cached[sequence])
                self._sink.health.count("tokens.seen", amount, request_id=request.request_id)
                self._sink.health.count("tokens.cached", amount, request_id=request.request_id)
            known = self._sequences.known_tokens(sequence)
            if not self._sink.call("started", self._sink.listener.request_started, request, known):
                return False
        return True

    def before_pass(self, input_ids: torch.Tensor | None, cache: object) -> None:
        """Work out the rows of a forward pass that is about to run.

        Args:
            input_ids: ``[S, T]``; None for a pass over embeddings.
            cache: the pass's ``past_key_values``.
        """
        if input_ids is not None and self._is_step(input_ids, cache):
            self._passes += 1
            self._gathered.begin(input_ids)
            return
        self._hand_on()
        if input_ids is None or not self._belongs(input_ids, cache):
            amount = 0 if input_ids is None else input_ids.numel()
            self._sink.health.count("dropped.unmapped_pass", amount)
            return
        self._passes += 1
        self._cache = cache
        start = 0 if cache is None else self._sequences.next_column
        end = start + input_ids.shape[1]
        new = end - self._sequences.known_columns
        if new > 0:
            self._learn(to_numpy(input_ids[:, -new:]))
        rows = self._eligible(self._sequences.take(end))
        self._pending = self._wait_for(rows, start, (input_ids.shape[0], input_ids.shape[1]))

    def after_block(self, output: Any) -> None:
        """Copy the waiting rows out of the block's output ``[S, T, d]``."""
        self._blocks += 1
        pending = self._pending
        if self._gathered.waits_for_block:
            if self._gathered.keep(flat_rows(output, (self._sequences.count, 1))):
                self._hand_on()
        elif pending is not None:
            self._deliver(pending, flat_rows(output, pending.shape), copied=False)

    def stop(self, stopping: Stopping, input_ids: torch.Tensor) -> list[int]:
        """End the sequences that ``stopping`` names; ``input_ids`` ``[S, T]`` are all up to now."""
        hidden = self._prompt.token_ids.shape[1] - self._prompt.input_columns
        columns = input_ids.shape[1] + hidden
        ended = []
        for sequence, request in enumerate(self.requests):
            length = self._sequences.length(sequence, columns)
            if length is None:
                continue
            place = (request.request_id, length, length - int(self._prompt_tokens[sequence]))
            if stopping.stops(*place) and int(input_ids[sequence, -1]) not in self._eos:
                self._sequences.end(sequence, columns)
                stopping.stopped(*place)
                ended.append(sequence)
        return ended

    def complete(self, output: Any) -> str | None:
        """Deliver what ``generate`` sampled last, and count passes that were never seen.

        Returns:
            None where the block was seen in every pass; else a counter, ``blind.no_rows`` or
            ``blind.some_rows``.
        """
        self._hand_on()
        tokens = output if isinstance(output, torch.Tensor) else output.sequences
        sequences = self._sequences
        learned = sequences.known_columns - sequences.prompt_columns
        rest = tokens[:, self._prompt.input_columns + learned :]
        if rest.shape[1]:
            self._learn(to_numpy(rest))
        processed = sequences.known_columns - 1  # the last token sampled is not fed again
        if sequences.next_column < processed:
            rows = self._eligible(sequences.take(processed))
            self._count("dropped.not_captured", rows.sequence.tolist())
            self._passes += 1
        if self._blocks >= self._passes:
            return None
        return "blind.some_rows" if self._blocks else "blind.no_rows"

    def finish(self) -> None:
        """End every announced request."""
        try:
            self._hand_on()
            self._drop_pending("not_captured")
            self._context.last_turn = Turn(
                self.requests, self._sequences.token_ids, self._sequences.real
            )
        finally:
            for request_id in self._started:
                self._sink.call("finished", self._sink.listener.request_finished, request_id)

    def _belongs(self, input_ids: torch.Tensor, cache: object) -> bool:
        """Whether a pass is the next step of this generation, and not one of somebody else's."""
        if input_ids.dim() != 2 or input_ids.shape[0] != self._sequences.count:
            return False
        if self._passes and cache is not self._cache:
            return False
        start = 0 if cache is None else self._sequences.next_column
        end, known = start + input_ids.shape[1], self._sequences.known_columns
        return bool(self._sequences.next_column < end <= known + 1)

    def _is_step(self, input_ids: torch.Tensor, cache: object) -> bool:
        """Whether a pass over the cache of the one before takes the one token sampled since."""
        if cache is None or cache is not self._cache or self._pending is not None:
            return False
        sequences = self._sequences
        return (
            input_ids.shape == (sequences.count, 1)
            and sequences.next_column == sequences.known_columns
        )

    def _hand_on(self) -> None:
        """Learn the tokens of the steps gathered, and deliver their rows."""
        self._drop_pending("not_captured")
        try:
            steps = self._gathered.take()
            if steps is None:
                return
            self._pending = pending = self._learn_steps(steps)
        except Exception:
            self._cache = _LOST  # nobody knows any longer where a further step's tokens belong
            raise
        if steps.vectors is not None:
            self._deliver(pending, steps.vectors, copied=True)

    def _learn_steps(self, steps: Steps) -> Pending:
        settings = self._sink.settings
        first = settings.min_position if Phase.COMPLETION.value in settings.phases else None
        learned = learn_steps(steps, self._sequences, first)
        for sequence, tokens in enumerate(learned.told):
            if tokens:
                self._tell(sequence, tuple(tokens))
        rows = learned.rows
        wanted = [row.sequence for row in rows]
        self._count("tokens.seen", [*wanted, *learned.excluded, *learned.lost])
        self._count("tokens.excluded", learned.excluded)
        self._count("dropped.not_captured", learned.lost)
        shape = (self._sequences.count, sum(steps.seen))
        at = [row.at for row in rows]
        everything = at == list(range(shape[0] * shape[1]))
        return Pending(
            tuple(wanted),
            tuple(row.position for row in rows),
            tuple(row.token_id for row in rows),
            (Phase.COMPLETION,) * len(rows),
            None if everything else to_device(torch.tensor(at, device="cpu"), self._sink.device),
            shape,
        )

    def _learn(self, token_ids: NDArray[np.int64]) -> None:
        for sequence, tokens in enumerate(self._sequences.learn(token_ids)):
            if tokens:
                self._tell(sequence, tokens)

    def _tell(self, sequence: int, token_ids: tuple[int, ...]) -> None:
        if not self._sink.quiet:
            request_id = self.requests[sequence].request_id
            self._sink.call("tokens", self._sink.listener.tokens, request_id, token_ids)

    def _eligible(self, rows: Rows) -> Rows:
        """Count every row as seen, and keep those that the settings ask for."""
        settings = self._sink.settings
        keep = rows.position >= settings.min_position
        in_prompt = rows.column < self._sequences.prompt_columns
        if Phase.PROMPT.value not in settings.phases:
            keep &= ~in_prompt
        if Phase.COMPLETION.value not in settings.phases:
            keep &= in_prompt
        self._count("tokens.seen", rows.sequence.tolist())
        if not keep.all():
            self._count("tokens.excluded", rows.sequence[~keep].tolist())
        return rows.where(keep)

    def _wait_for(self, rows: Rows, start: int, shape: tuple[int, int]) -> Pending:
        index = None
        if len(rows) < shape[0] * shape[1]:
            flat = rows.sequence * shape[1] + (rows.column - start)
            index = to_device(torch.from_numpy(flat), self._sink.device)
        in_prompt = (rows.column < self._sequences.prompt_columns).tolist()
        return Pending(
            tuple(rows.sequence.tolist()),
            tuple(rows.position.tolist()),
            tuple(rows.token_id.tolist()),
            tuple(Phase.PROMPT if p else Phase.COMPLETION for p in in_prompt),
            index,
            shape,
        )

    def _deliver(self, pending: Pending, flat: torch.Tensor, *, copied: bool) -> None:
        """Give the listener the waiting rows of ``flat`` ``[n, d]``, which it may keep."""
        if not len(pending):
            self._pending = None
            return
        if self._sink.quiet:
            self._drop_pending("circuit_open")
            return
        if pending.index is not None:
            flat = flat.index_select(0, pending.index.to(flat.device))
        elif not copied:
            flat = flat.clone()
        batch = pending.batch(self.requests, self._sink.layer, flat)
        if self._sink.call("rows", self._sink.listener.rows, batch):
            self._pending = None
        else:
            self._drop_pending("listener_failed")

    def _drop_pending(self, reason: str) -> None:
        if self._pending is not None:
            self._count(f"dropped.{reason}", self._pending.sequences)
            self._pending = None

    def _count(self, name: str, sequences: Iterable[int]) -> None:
        """Count one token for each entry of ``sequences``."""
        amounts: dict[str, int] = {}
        for sequence in sequences:
            request_id = self.requests[sequence].request_id
            amounts[request_id] = amounts.get(request_id, 0) + 1
        if amounts:
            self._sink.health.count_each(name, amounts)
