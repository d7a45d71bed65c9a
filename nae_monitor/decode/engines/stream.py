"""Texts on the fused pass, the batch kept full: a prompt enters where a text has ended.

Prompts enter in their order. Sorting them by length would gain nothing: all are equally long, and
how long a text becomes is known only when it has ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch

from nae_monitor.decode.engines.fused import FusedDecoder
from nae_monitor.decode.engines.key_values import KeyValues
from nae_monitor.decode.engines.next_tokens import NextTokens, Row
from nae_monitor.decode.engines.text_end import TextEnd
from nae_monitor.decode.prompts import Generation, PromptBatch, Sampling

REFILL_SHARE = 8  # prompts enter once this part of the batch is free: few rows fill no product
# More in one pass are more memory than the allocator keeps, and the kernel would clear its pages
# each time.
PREFILL_ROWS = 32
LOGIT_ROWS = 128  # of 49,152 float32 logits: 24 MiB


class Stream:
    """One thread's rows and caches; the weights are shared with every other stream.

    Args:
        decoder: the pass.
        next_tokens: chooses tokens.
        end: says when a text is over.
        draft: embeddings [t, d] of the tokens with which texts are expected to begin.
        draft_ids: these tokens.
        go_on: asked before each step; raises where the call was given up.
    """

    def __init__(
        self,
        decoder: FusedDecoder,
        next_tokens: NextTokens,
        end: TextEnd,
        draft: torch.Tensor,
        draft_ids: Sequence[int],
        go_on: Callable[[], None],
    ) -> None:
        self._decoder = decoder
        self._next = next_tokens
        self._end = end
        self._draft = draft
        self._draft_ids = tuple(draft_ids)
        self._go_on = go_on
        self._spare: KeyValues | None = None

    @property
    def cache_bytes(self) -> int:
        """Kept for the next call."""
        return 0 if self._spare is None else self._spare.size_bytes

    def run(
        self, prompts: PromptBatch, places: Sequence[int], batch_size: int, sampling: Sampling
    ) -> dict[int, Generation]:
        """The texts of the prompts at ``places``, at most ``batch_size`` at a time, by place."""
        length = int(prompts.embeddings.shape[1])
        size = min(batch_size, len(places))
        cache = self._take_cache(size, length + sampling.max_new_tokens)
        prefix = self._prefix(prompts)
        waiting = deque(places)
        done: dict[int, Generation] = {}
        rows: list[Row] = []
        filling = True  # until the batch is full again
        while rows or waiting:
            self._go_on()
            free = size - len(rows)
            if waiting and (filling or free >= max(1, size // REFILL_SHARE)):
                count = min(free, len(waiting), PREFILL_ROWS)
                fresh = [self._row(prompts, waiting.popleft(), sampling) for _ in range(count)]
                cache.copy_prefix(prefix, prompts.shared_tokens, len(rows), count)
                self._begin(cache, len(rows), fresh, prompts.shared_tokens, sampling)
                rows += fresh
                filling = len(rows) < size
            else:
                ids = torch.tensor([row.ids[-1] for row in rows])
                starts = [length + len(row.ids) - 1 for row in rows]
                last = self._decoder.forward(self._decoder.embed(ids), cache, 0, starts)
                self._extend(last, rows, sampling)
            self._retire(rows, cache, length, sampling, done)
        self._spare = cache
        return done

    def _row(self, prompts: PromptBatch, place: int, sampling: Sampling) -> Row:
        prompt = prompts.embeddings[place].to(self._draft.dtype)
        return Row.begun(place, prompt, sampling)

    def _take_cache(self, rows: int, capacity_tokens: int) -> KeyValues:
        """The last call's, where it is large enough; only one is kept."""
        spare, self._spare = self._spare, None
        if spare is not None and (
            spare.shape.rows >= rows and spare.shape.capacity_tokens >= capacity_tokens
        ):
            return spare
        return self._decoder.cache(rows, capacity_tokens)

    def _prefix(self, prompts: PromptBatch) -> KeyValues:
        """Keys and values of what all prompts begin with, run once."""
        shared = prompts.shared_tokens
        cache = self._decoder.cache(1, max(shared, 1))
        if shared:
            states = prompts.embeddings[:1, :shared].to(self._draft.dtype)
            self._decoder.forward(states, cache, 0, [0])
        return cache

    def _begin(
        self, cache: KeyValues, first: int, rows: list[Row], shared: int, sampling: Sampling
    ) -> None:
        """Run the prompts of new rows, and choose their first tokens.

        The drafted tokens stand behind each prompt in the same pass and count as far as they are
        what would have been chosen.
        """
        draft = self._draft[: sampling.max_new_tokens - 1]
        states = torch.stack([torch.cat([row.prompt[shared:], draft]) for row in rows])
        behind = self._decoder.forward_all(states, cache, first, [shared] * len(rows))
        behind = behind[:, -1 - len(draft) :]
        going = list(range(len(rows)))
        for number, expected in enumerate((*self._draft_ids, None)[: behind.shape[1]]):
            self._extend(behind[going, number], [rows[i] for i in going], sampling)
            going = [i for i in going if rows[i].ids[-1] == expected]
            if not going:
                return

    def _extend(self, last: torch.Tensor, rows: list[Row], sampling: Sampling) -> None:
        """Their next tokens, from last states [n, d]."""
        for start in range(0, len(rows), LOGIT_ROWS):
            part = slice(start, start + LOGIT_ROWS)
            if sampling.is_greedy:
                self._next.extend_by(self._decoder.best(last[part]), rows[part])
            else:
                self._next.extend(self._decoder.logits(last[part]), rows[part], sampling)

    def _retire(
        self,
        rows: list[Row],
        cache: KeyValues,
        length: int,
        sampling: Sampling,
        done: dict[int, Generation],
    ) -> None:
        """Take out the rows that ended; the last ones move into their places."""
        for place in reversed(range(len(rows))):
            row = rows[place]
            if not self._end.is_over(row.ids, sampling.max_new_tokens):
                continue
            done[row.index] = self._end.generation(row.ids)
            last = rows.pop()
            if place < len(rows):
                rows[place] = last
                cache.move(len(rows), place, length + len(last.ids) - 1)
