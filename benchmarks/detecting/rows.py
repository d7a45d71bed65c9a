"""The target's side: replies, and the rows of every content position, kept on disk by content."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from detecting.conversations import Case, Part
from nae_monitor.decode.engines.fused import FusedDecoder
from nae_monitor.errors import InputDataError
from nae_monitor.models import Target
from nae_monitor.train.conversations import (
    CollectOptions,
    Conversation,
    is_content,
    opening_tokens,
    render,
)
from nae_monitor.train.files import make_directory, replacing
from nae_monitor.train.shards import read_shard

ENTROPY_ROWS = 8
NO_ENTROPY: Part = "directions"  # the part whose rows are never chosen from


@dataclass(frozen=True, eq=False, slots=True)
class Talk:
    """One conversation as the monitor sees it; n content positions of prompt and reply."""

    digest: str
    token_ids: tuple[int, ...]
    prompt_tokens: int  # the first so many ids, template included
    positions: torch.Tensor  # [n] int64, ascending
    vectors: torch.Tensor  # [n, d] float16, hidden_states[layer]
    entropy: torch.Tensor  # [n] float32, nats, of the next token; NaN of the part for directions

    @property
    def is_prompt(self) -> torch.Tensor:
        """[n] bool."""
        return self.positions < self.prompt_tokens


@dataclass(frozen=True, eq=False, slots=True)
class Runner:
    """The target in the two precisions that a collection uses."""

    target: Target
    decoder: FusedDecoder  # of the same model, in the precision that replies are written in
    options: CollectOptions

    @property
    def identity(self) -> str:
        """What rows depend on besides the message."""
        o = self.options
        parts = (self.target.fingerprint, o.layer, o.prompt_tokens, o.reply_tokens)
        return json.dumps([*parts, o.min_position, o.autocast])

    def talks(self, cases: Sequence[Case]) -> list[Talk]:
        """Reply to the messages of one batch and read their rows."""
        tokenizer = self.target.tokenizer
        prompts = [render(tokenizer, c.document, self.options.prompt_tokens) for c in cases]
        replies = greedy(self.decoder, prompts, self.options.reply_tokens)
        ends = {tokenizer.eos_token_id, self.target.model.generation_config.eos_token_id}
        return self._read(
            [
                Conversation(case.document, case.part, (*prompt, *_until(said, ends)), len(prompt))
                for case, prompt, said in zip(cases, prompts, replies, strict=True)
            ]
        )

    @torch.inference_mode()
    def _read(self, conversations: Sequence[Conversation]) -> list[Talk]:
        tokenizer, model = self.target.tokenizer, self.target.model
        special, opening = frozenset(tokenizer.all_special_ids), opening_tokens(tokenizer)
        first = max(opening, self.options.min_position)
        width = max(len(c.token_ids) for c in conversations)
        # Causal attention never reaches the padding behind a conversation.
        ids = torch.tensor(
            [[*c.token_ids, *[0] * (width - len(c.token_ids))] for c in conversations]
        )
        found = []
        with self._precision():
            out = model.model(input_ids=ids, output_hidden_states=True, use_cache=False)
            hidden = out.hidden_states[self.options.layer]
            for i, talk in enumerate(conversations):
                at = [
                    p
                    for p in range(first, len(talk.token_ids))
                    if is_content(talk.token_ids, p, special)
                ]
                entropy = torch.full((len(at),), torch.nan)
                if talk.split != NO_ENTROPY:
                    entropy = _entropy(model.lm_head(out.last_hidden_state[i, at]))
                found.append(
                    Talk(
                        talk.document.digest,
                        talk.token_ids,
                        talk.prompt_tokens,
                        torch.tensor(at, dtype=torch.long),
                        hidden[i, at].to(torch.float16),
                        entropy,
                    )
                )
        return found

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.options.autocast:
            return torch.autocast("cpu", dtype=torch.bfloat16)
        return contextlib.nullcontext()


def kept_rows(
    directory: Path, cases: Sequence[Case], tokenizer: Any, options: CollectOptions
) -> dict[str, Talk]:
    """Conversations of the recipe's own collection: a few rows each, replies as far as those go.

    Raises:
        InputDataError: damaged, or nothing of these conversations is there.
    """
    wanted = {case.digest: case for case in cases}
    rows: dict[str, list[tuple[dict[str, Any], Any]]] = {}
    for file in sorted(directory.glob("shard-*.parquet")):
        for vector, row in zip(*read_shard(file, "train"), strict=True):
            if row["digest"] in wanted and row["content"]:
                rows.setdefault(str(row["digest"]), []).append((row, vector))
    if not rows:
        raise InputDataError(f"{directory} holds no rows of the conversations to learn from")
    return {
        digest: _kept(wanted[digest], found, tokenizer, options) for digest, found in rows.items()
    }


def _kept(
    case: Case, rows: Sequence[tuple[dict[str, Any], Any]], tokenizer: Any, options: CollectOptions
) -> Talk:
    prompt = render(tokenizer, case.document, options.prompt_tokens)
    longest = max((row["reply_ids"] for row, _ in rows), key=len)
    rows = sorted(rows, key=lambda pair: int(pair[0]["position"]))
    return Talk(
        case.digest,
        (*prompt, *longest),
        len(prompt),
        torch.tensor([int(row["position"]) for row, _ in rows]),
        torch.stack([torch.tensor(vector) for _, vector in rows]),
        torch.full((len(rows),), torch.nan),
    )


def collected(
    runner: Runner,
    cases: Sequence[Case],
    directory: Path,
    workers: int,
    report: Any = lambda *_: None,
) -> tuple[dict[str, Talk], float]:
    """Rows of all conversations, and the tokens that one second of a worker was worth.

    Batches are cut from messages sorted by length; each becomes one file, written whole, under a
    name made of what it depends on. A run that is killed goes on from there.
    """
    make_directory(directory)
    ordered = sorted(cases, key=lambda c: (c.part == NO_ENTROPY, len(c.document.text), c.digest))
    size = runner.options.batch_size
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    talks: dict[str, Talk] = {}
    tokens = seconds = 0.0
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(lambda batch: _batch(runner, batch, directory), batches)
        for number, (found, taken_s) in enumerate(done):
            talks |= {talk.digest: talk for talk in found}
            tokens += sum(len(talk.token_ids) for talk in found)
            seconds += taken_s
            report("converse", number + 1, len(batches))
    return talks, tokens / max(seconds, 1e-9)


def _batch(runner: Runner, cases: Sequence[Case], directory: Path) -> tuple[list[Talk], float]:
    key = hashlib.sha256()
    for part in (runner.identity, *(f"{c.part == NO_ENTROPY}{c.digest}" for c in cases)):
        key.update(part.encode() + b"\0")
    place = directory / f"talks-{key.hexdigest()[:24]}.safetensors"
    if not place.exists():
        started_s = perf_counter()
        talks = runner.talks(cases)
        _write(place, talks, perf_counter() - started_s)
    return _read(place)


def _write(place: Path, talks: Sequence[Talk], seconds: float) -> None:
    tensors = {
        f"{name}.{i}": getattr(talk, name).contiguous()
        for i, talk in enumerate(talks)
        for name in ("positions", "vectors", "entropy")
    }
    told = [[talk.digest, talk.prompt_tokens, list(talk.token_ids)] for talk in talks]
    with replacing(place) as temporary:
        save_file(tensors, temporary, {"talks": json.dumps(told), "seconds": str(seconds)})


def _read(place: Path) -> tuple[list[Talk], float]:
    with safe_open(place, framework="pt") as file:
        told = file.metadata()
        talks = [
            Talk(
                digest,
                tuple(ids),
                prompt_tokens,
                *(file.get_tensor(f"{name}.{i}") for name in ("positions", "vectors", "entropy")),
            )
            for i, (digest, prompt_tokens, ids) in enumerate(json.loads(told["talks"]))
        ]
    return talks, float(told["seconds"])


@torch.inference_mode()
def greedy(
    decoder: FusedDecoder, prompts: Sequence[Sequence[int]], reply_tokens: int
) -> list[list[int]]:
    """The likeliest ``reply_tokens`` ids behind each prompt, prompts of any lengths."""
    lengths = [len(ids) for ids in prompts]
    width = max(lengths)
    cache = decoder.cache(len(prompts), width + reply_tokens)
    padded = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in prompts])
    # What the padding leaves behind a prompt is never attended to before it is overwritten.
    decoder.forward(
        decoder.embed(padded.flatten()).view(*padded.shape, -1), cache, 0, [0] * len(prompts)
    )
    last, found = torch.tensor([ids[-1] for ids in prompts]), []
    for step in range(reply_tokens):
        starts = [length - 1 + step for length in lengths]
        last = decoder.logits(decoder.forward(decoder.embed(last), cache, 0, starts)).argmax(-1)
        found.append(last)
    replies: list[list[int]] = torch.stack(found, dim=1).tolist()
    return replies


def _until(ids: Sequence[int], ends: set[Any]) -> Sequence[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    """Nats [n] of logits [n, vocabulary], a few rows at a time: they fit the cache then."""
    found = []
    for start in range(0, len(logits), ENTROPY_ROWS):
        wide = logits[start : start + ENTROPY_ROWS].float()
        total = wide.logsumexp(-1, keepdim=True)
        found.append(total[:, 0] - (wide - total).exp_().mul_(wide).sum(-1))
    return torch.cat(found) if found else torch.zeros(0)


def visible(case: Case, talk: Talk, tokenizer: Any, prompt_tokens: int) -> tuple[str, str]:
    """What a reader sees: the user's message as far as the target read it, and the reply."""
    ids = tokenizer(case.document.text, add_special_tokens=False).input_ids[:prompt_tokens]
    said = tokenizer.decode(talk.token_ids[talk.prompt_tokens :], skip_special_tokens=True)
    return tokenizer.decode(ids), said
