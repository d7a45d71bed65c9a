"""The verbalizer in this process: batched decoding on a key-value cache.

All prompts have the same length, so nothing is padded; rows that end leave the batch at once.
Llama- and Qwen2-shaped models whose weights stay as they are run on
:class:`~nae_monitor.decode.engines.fused.FusedDecoder`, and the next prompts take the places of
rows that ended; every other model runs on its own forward pass, in batches, and
:attr:`TorchEngine.general_because` says why.

Prompts enter in their order. Sorting them by length would gain nothing: all are equally long, and
how long a text becomes is known only when it has ended.

The same text whatever the batch: see :mod:`nae_monitor.decode.engines.next_tokens`.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import torch
from transformers import DynamicCache

from nae_monitor.decode.engines.fused import FusedDecoder, unsupported
from nae_monitor.decode.engines.key_values import KeyValues
from nae_monitor.decode.engines.next_tokens import NextTokens, Row
from nae_monitor.decode.engines.quantised import lacking
from nae_monitor.decode.engines.text_end import TextEnd
from nae_monitor.decode.prompts import OPEN_TAG, Generation, PromptBatch, Sampling
from nae_monitor.errors import AbandonedError, UnsupportedError

log = logging.getLogger(__name__)
REFILL_SHARE = 8  # prompts enter once this part of the batch is free: few rows fill no product
# More in one pass are more memory than the allocator keeps, and the kernel would clear its pages
# each time.
PREFILL_ROWS = 32
LOGIT_ROWS = 128  # of 49,152 float32 logits: 24 MiB


class TorchEngine:
    """Generates with a transformers causal LM.

    Args:
        model: the verbalizer, in evaluation mode.
        tokenizer: its tokenizer.
        batch_size: how many prompts run at once.
        is_frozen: the weights never change while the engine lives, so that they may be laid out
            anew, which costs a copy of about half of them.
        is_int8: of frozen weights in float32 the rounded ones of
            :class:`~nae_monitor.decode.engines.fused.FusedDecoder` are kept alone.

    Raises:
        UnsupportedError: 8-bit weights that cannot be had of this model or on this machine.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int,
        is_frozen: bool = False,
        is_int8: bool = False,
    ) -> None:
        self._model: Any = None if is_int8 else model  # else it would hold the weights as they were
        self._batch_size = batch_size
        self._embed = model.get_input_embeddings()
        self._device = self._embed.weight.device
        self._dtype = self._embed.weight.dtype
        self._end = TextEnd(model, tokenizer)
        self._draft = torch.tensor(
            tokenizer(OPEN_TAG, add_special_tokens=False)["input_ids"], device=self._device
        )
        self.weights = "int8" if is_int8 else str(self._dtype).removeprefix("torch.")
        self._next = NextTokens(model if self.weights == "float32" else None, self._embed)
        reason = unsupported(model) if is_frozen else "the weights may change"
        if is_int8 and (fault := reason or lacking()) is not None:
            raise UnsupportedError(f"the verbalizer's weights cannot be int8: {fault}")
        self.general_because = reason  # None: the fused pass is used
        self._fused = FusedDecoder(model, is_int8=is_int8) if reason is None else None
        self._spare: KeyValues | None = None
        self._is_abandoned = False  # read between steps
        if is_frozen and reason is not None:
            log.info("the verbalizer decodes on the general, slower path: %s", reason)

    def prompt_rows(self, token_ids: tuple[int, ...]) -> torch.Tensor:
        """Embeddings of ``token_ids`` as the first block sees them, [T, d] float32."""
        with torch.inference_mode():
            rows: torch.Tensor = self._embed(torch.tensor(token_ids, device=self._device))
        return rows.float().cpu()

    def generate(self, prompts: PromptBatch, sampling: Sampling) -> list[Generation]:
        """See :class:`nae_monitor.decode.engines.Engine`; never raises EngineError."""
        self._is_abandoned = False
        done: dict[int, Generation] = {}
        with torch.inference_mode():
            if self._fused is not None:
                self._run_fused(self._fused, prompts, sampling, done)
                return [done[i] for i in range(len(prompts))]
            for start in range(0, len(prompts), self._batch_size):
                stop = min(start + self._batch_size, len(prompts))
                rows = [self._row(prompts, i, sampling) for i in range(start, stop)]
                self._run(rows, prompts.shared_tokens, sampling, done)
        return [done[i] for i in range(len(prompts))]

    def abandon(self) -> bool:
        """See :class:`nae_monitor.decode.engines.Engine`: it ends before the next step."""
        self._is_abandoned = True
        return True

    def _go_on(self) -> None:
        if self._is_abandoned:
            raise AbandonedError("the decode was given up between two steps")

    def _row(self, prompts: PromptBatch, index: int, sampling: Sampling) -> Row:
        prompt = prompts.embeddings[index].to(self._device, self._dtype)
        if sampling.is_greedy:
            return Row(index, prompt, None)
        return Row(index, prompt, torch.Generator().manual_seed(sampling.seeds[index]))

    def _run_fused(
        self,
        decoder: FusedDecoder,
        prompts: PromptBatch,
        sampling: Sampling,
        done: dict[int, Generation],
    ) -> None:
        """Keep the batch full: a prompt enters where a text has ended."""
        length = int(prompts.embeddings.shape[1])
        size = min(self._batch_size, len(prompts))
        cache = self._take_cache(decoder, size, length + sampling.max_new_tokens)
        prefix = self._prefix(decoder, prompts)
        draft = self._embed(self._draft[: sampling.max_new_tokens - 1])
        waiting = deque(range(len(prompts)))
        rows: list[Row] = []
        filling = True  # until the batch is full again
        while rows or waiting:
            self._go_on()
            free = size - len(rows)
            if waiting and (filling or free >= max(1, size // REFILL_SHARE)):
                count, shared = min(free, len(waiting), PREFILL_ROWS), prompts.shared_tokens
                fresh = [self._row(prompts, waiting.popleft(), sampling) for _ in range(count)]
                cache.copy_prefix(prefix, shared, len(rows), count)
                states = torch.stack([torch.cat([row.prompt[shared:], draft]) for row in fresh])
                behind = decoder.forward_all(states, cache, len(rows), [shared] * count)
                self._begin(decoder, behind[:, -1 - len(draft) :], fresh, sampling)
                rows += fresh
                filling = len(rows) < size
            else:
                ids = torch.tensor([row.ids[-1] for row in rows], device=self._device)
                starts = [length + len(row.ids) - 1 for row in rows]
                last = decoder.forward(decoder.embed(ids), cache, 0, starts)
                self._extend_fused(decoder, last, rows, sampling)
            self._retire(rows, cache, length, sampling, done)
        self._spare = cache

    def _take_cache(self, decoder: FusedDecoder, rows: int, capacity_tokens: int) -> KeyValues:
        """The last call's, where it is large enough; only one is kept."""
        spare, self._spare = self._spare, None
        if spare is not None and (
            spare.shape.rows >= rows and spare.shape.capacity_tokens >= capacity_tokens
        ):
            return spare
        return decoder.cache(rows, capacity_tokens)

    def _prefix(self, decoder: FusedDecoder, prompts: PromptBatch) -> KeyValues:
        """Keys and values of what all prompts begin with, run once."""
        shared = prompts.shared_tokens
        cache = decoder.cache(1, max(shared, 1))
        if shared:
            states = prompts.embeddings[:1, :shared].to(self._device, self._dtype)
            decoder.forward(states, cache, 0, [0])
        return cache

    def _begin(
        self, decoder: FusedDecoder, behind: torch.Tensor, rows: list[Row], sampling: Sampling
    ) -> None:
        """First tokens of new rows, from states [n, 1 + t, d] behind prompt and ``t`` drafted ones.

        The drafted ones count as far as they are what would have been chosen.
        """
        places = list(range(len(rows)))
        for number, expected in enumerate((*self._draft.tolist(), None)[: behind.shape[1]]):
            chosen = [rows[i] for i in places]
            self._extend_fused(decoder, behind[places, number], chosen, sampling)
            places = [i for i in places if rows[i].ids[-1] == expected]
            if not places:
                return

    def _extend_fused(
        self, decoder: FusedDecoder, last: torch.Tensor, rows: list[Row], sampling: Sampling
    ) -> None:
        """Their next tokens, from last states [n, d]."""
        for start in range(0, len(rows), LOGIT_ROWS):
            part = slice(start, start + LOGIT_ROWS)
            if sampling.is_greedy:
                self._next.extend_by(decoder.best(last[part]), rows[part])
            else:
                self._next.extend(decoder.logits(last[part]), rows[part], sampling)

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
            if not self._ends(rows[place], sampling):
                continue
            done[rows[place].index] = self._finish(rows[place])
            last = rows.pop()
            if place < len(rows):
                rows[place] = last
                cache.move(len(rows), place, length + len(last.ids) - 1)

    def _run(
        self, rows: list[Row], shared: int, sampling: Sampling, done: dict[int, Generation]
    ) -> None:
        cache = DynamicCache(config=self._model.config)
        logits = self._prefill(rows, shared, cache)
        while True:
            self._go_on()
            self._next.extend(logits, rows, sampling)
            alive = [i for i, row in enumerate(rows) if not self._ends(row, sampling)]
            if len(alive) < len(rows):
                kept = set(alive)
                done |= {r.index: self._finish(r) for i, r in enumerate(rows) if i not in kept}
                rows = [rows[i] for i in alive]
                if not rows:
                    return
                cache.batch_select_indices(torch.tensor(alive, device=self._device))
            last = torch.tensor([[row.ids[-1]] for row in rows], device=self._device)
            output = self._model(
                input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            logits = output.logits[:, -1].float()

    def _prefill(self, rows: list[Row], shared: int, cache: Any) -> torch.Tensor:
        """Run the prompts; what stands before the marker is the same in all and runs once."""
        if shared:
            self._model(
                inputs_embeds=rows[0].prompt[None, :shared],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache.batch_repeat_interleave(len(rows))
        embedded = torch.stack([row.prompt[shared:] for row in rows])
        output = self._model(
            inputs_embeds=embedded,
            past_key_values=cache,
            use_cache=True,
            # By index, which copies the last states. A slice of them makes torch copy the LM
            # head once a row instead: 4 s for 64 rows in bfloat16.
            logits_to_keep=torch.tensor([embedded.shape[1] - 1], device=self._device),
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _ends(self, row: Row, sampling: Sampling) -> bool:
        return len(row.ids) >= sampling.max_new_tokens or self._end.reached(row.ids)

    def _finish(self, row: Row) -> Generation:
        return Generation(self._end.text(row.ids), len(row.ids))
