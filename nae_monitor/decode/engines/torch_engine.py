"""The verbalizer in this process: batched decoding on a key-value cache.

All prompts have the same length, so nothing is padded; rows that end leave the batch at once.
Llama- and Qwen2-shaped models whose weights stay as they are run on
:class:`~nae_monitor.decode.engines.fused.FusedDecoder`, and the next prompts take the places of
rows that ended; every other model runs on its own forward pass, in batches, and
:attr:`TorchEngine.general_because` says why.

Large batches run as several streams side by side, each on cores of its own: cores that share one
product wait for each other at the end of each of some two hundred a step.

The same text whatever the batch: see :mod:`nae_monitor.decode.engines.next_tokens`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from transformers import DynamicCache

from nae_monitor.decode.engines.fused import FusedDecoder, unsupported
from nae_monitor.decode.engines.next_tokens import NextTokens, Row
from nae_monitor.decode.engines.quantised import lacking
from nae_monitor.decode.engines.stream import Stream
from nae_monitor.decode.engines.text_end import TextEnd
from nae_monitor.decode.prompts import OPEN_TAG, Generation, PromptBatch, Sampling
from nae_monitor.errors import AbandonedError, UnsupportedError

log = logging.getLogger(__name__)
_Run = Callable[[], dict[int, Generation]]
_Answers = SimpleQueue[dict[int, Generation] | Exception]
MIN_STREAM_ROWS = 64  # of fewer rows a product is slower than what sharing it costs


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
        self._streams: list[Stream] = []
        self._is_abandoned = False  # read between steps
        if is_frozen and reason is not None:
            log.info("the verbalizer decodes on the general, slower path: %s", reason)

    @property
    def cache_bytes(self) -> int:
        """Of the keys and values that are kept between calls."""
        return sum(stream.cache_bytes for stream in self._streams)

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
                done = self._run_fused(self._fused, prompts, sampling)
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
        return Row.begun(index, prompt, sampling)

    def _run_fused(
        self, decoder: FusedDecoder, prompts: PromptBatch, sampling: Sampling
    ) -> dict[int, Generation]:
        together = min(self._batch_size, len(prompts))
        count = _stream_count(together, torch.get_num_threads())
        self._streams += [self._stream(decoder) for _ in range(count - len(self._streams))]
        runs = [
            partial(
                stream.run,
                prompts,
                range(first, len(prompts), count),
                -(-together // count),
                sampling,
            )
            for first, stream in enumerate(self._streams[:count])
        ]
        return runs[0]() if count == 1 else self._side_by_side(runs)

    def _stream(self, decoder: FusedDecoder) -> Stream:
        draft = self._embed(self._draft)
        return Stream(decoder, self._next, self._end, draft, self._draft.tolist(), self._go_on)

    def _side_by_side(self, runs: Sequence[_Run]) -> dict[int, Generation]:
        """All of them, each in a thread of its own that has its share of the cores."""
        threads = torch.get_num_threads()
        answers: _Answers = SimpleQueue()
        for number, run in enumerate(runs):
            share = (run, threads // len(runs), answers)
            Thread(target=_answer, args=share, name=f"decode-{number}", daemon=True).start()
        done: dict[int, Generation] = {}
        failures: list[Exception] = []
        missing = len(runs)
        try:
            while missing:
                # Not join: one that Ctrl-C interrupts takes the thread for ended ever after.
                answer = answers.get()
                missing -= 1
                if isinstance(answer, Exception):
                    failures.append(answer)
                    self.abandon()  # the others
                else:
                    done |= answer
        finally:
            while missing:  # interrupted: a thread inside torch would abort an interpreter's end
                self.abandon()
                answers.get()
                missing -= 1
            torch.set_num_threads(threads)  # what new threads of the process begin with
        if failures:
            raise failures[0]
        return done

    def _run(
        self, rows: list[Row], shared: int, sampling: Sampling, done: dict[int, Generation]
    ) -> None:
        cache = DynamicCache(config=self._model.config)
        logits = self._prefill(rows, shared, cache)
        while True:
            self._go_on()
            self._next.extend(logits, rows, sampling)
            limit = sampling.max_new_tokens
            alive = [i for i, row in enumerate(rows) if not self._end.is_over(row.ids, limit)]
            if len(alive) < len(rows):
                kept = set(alive)
                ended = (row for i, row in enumerate(rows) if i not in kept)
                done |= {row.index: self._end.generation(row.ids) for row in ended}
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


def _stream_count(rows: int, threads: int) -> int:
    """As many as rows and cores allow, all with as many cores."""
    most = min(threads, rows // MIN_STREAM_ROWS)
    return next((count for count in range(most, 1, -1) if threads % count == 0), 1)


def _answer(
    run: _Run, threads: int, answers: SimpleQueue[dict[int, Generation] | Exception]
) -> None:
    try:
        torch.set_num_threads(threads)  # of this thread
        with torch.inference_mode():
            answers.put(run())
    except Exception as error:  # noqa: BLE001 - raised again by the thread that asked
        answers.put(error)
