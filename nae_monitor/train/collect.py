"""Run the target over the corpus: replies, activations at layer K, and what it would say next.

One row is one token position of one conversation: the residual stream ``hidden_states[K]``, the
tokens before it and the target's own greedy continuation. The continuation of many positions of
one document is decoded at once: each position grows a branch of its own behind the document's
key-value cache, kept apart by the attention mask.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nae_monitor.train.corpus import TrainingDocument

CONTEXT_TOKENS = 16  # tokens kept before a position, itself included
NEXT_TOKENS = 6  # greedy continuation kept


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """How much is collected, and at which precision."""

    layer: int
    prompt_tokens: int = 96  # a longer user message is cut
    reply_tokens: int = 24
    positions_per_document: int = 5
    min_position: int = 10
    batch_size: int = 96
    max_batches: int | None = None  # stop after so many, in the shuffled order
    autocast: bool = False  # bfloat16 matrix products, float32 residual stream


@dataclass(frozen=True, eq=False, slots=True)
class Conversation:
    """A rendered document with the target's own greedy reply."""

    document: TrainingDocument
    split: str
    token_ids: tuple[int, ...]
    prompt_tokens: int  # the first ``prompt_tokens`` ids are the prompt, template included


def render(tokenizer: Any, document: TrainingDocument, prompt_tokens: int) -> list[int]:
    """Token ids of the chat-templated prompt with a generation prompt at its end."""
    ids = tokenizer(document.text, add_special_tokens=False).input_ids[:prompt_tokens]
    messages = [{"role": "user", "content": tokenizer.decode(ids)}]
    return list(
        tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False
        )
    )


def opening_tokens(tokenizer: Any) -> int:
    """How many tokens every rendered conversation shares before the user's first word."""
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
        )
        for text in ("alpha", "Zebra")
    ]
    return next(
        (i for i, (a, b) in enumerate(zip(*rendered, strict=False)) if a != b), len(rendered[0])
    )


@torch.inference_mode()
def reply(
    model: Any,
    tokenizer: Any,
    documents: Sequence[tuple[TrainingDocument, str]],
    options: CollectOptions,
) -> list[Conversation]:
    """Generate greedy replies for one batch of documents."""
    prompts = [render(tokenizer, d, options.prompt_tokens) for d, _ in documents]
    width = max(len(p) for p in prompts)
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=False,
        max_new_tokens=options.reply_tokens,
        pad_token_id=pad,
    )
    conversations = []
    stop = tokenizer.eos_token_id
    for (document, split), prompt, row in zip(documents, prompts, out.tolist(), strict=True):
        new = row[width:]
        new = new[: new.index(stop)] if stop in new else new
        conversations.append(Conversation(document, split, (*prompt, *new), len(prompt)))
    return conversations


def choose_positions(
    conversation: Conversation,
    special: frozenset[int],
    opening: int,
    options: CollectOptions,
    rng: np.random.Generator,
) -> list[int]:
    """Positions to keep: content of prompt and reply mostly, one in eight from the template.

    The first ``opening`` tokens are the same in every conversation and count as template.
    """
    ids = conversation.token_ids
    eligible = range(options.min_position, len(ids))
    content = [p for p in eligible if p >= opening and is_content(ids, p, special)]
    other = [p for p in eligible if p not in set(content)]
    chosen: set[int] = set()
    while len(chosen) < min(options.positions_per_document, len(eligible)):
        pool = content if content and (rng.random() < 0.875 or not other) else other
        chosen.add(int(pool[rng.integers(len(pool))]))
        if len(chosen) >= len(set(content)) and not other:
            break
    return sorted(chosen)


def is_content(token_ids: Sequence[int], position: int, special: frozenset[int]) -> bool:
    """Whether no template token lies within one place of ``position``."""
    return not any(t in special for t in token_ids[max(0, position - 1) : position + 2])


@torch.inference_mode()
def measure(
    model: Any,
    conversations: Sequence[Conversation],
    positions: Sequence[Sequence[int]],
    options: CollectOptions,
) -> tuple[list[torch.Tensor], list[list[list[int]]]]:
    """Vectors [p, d] float32 and greedy continuations [p][NEXT_TOKENS] of each conversation."""
    device = model.device
    lengths = [len(c.token_ids) for c in conversations]
    width, branches = max(lengths), max(len(p) for p in positions)
    ids = torch.zeros(len(conversations), width, dtype=torch.long)
    at = torch.zeros(len(conversations), branches, dtype=torch.long)
    for i, conversation in enumerate(conversations):
        ids[i, : lengths[i]] = torch.tensor(conversation.token_ids)
        at[i, : len(positions[i])] = torch.tensor(positions[i])
    ids, at = ids.to(device), at.to(device)
    with _precision(options, device):
        out = model.model(input_ids=ids, use_cache=True, output_hidden_states=True)
        rows = torch.arange(len(conversations), device=device)[:, None]
        vectors = out.hidden_states[options.layer][rows, at].float().cpu()
        token = model.lm_head(out.last_hidden_state[rows, at]).argmax(-1)
        tokens = [token]
        cache = out.past_key_values
        for step in range(1, NEXT_TOKENS):
            mask = _branch_mask(at, width, step, vectors.dtype, device)
            out = model.model(
                input_ids=token,
                position_ids=at + step,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
            )
            token = model.lm_head(out.last_hidden_state).argmax(-1)
            tokens.append(token)
    following = torch.stack(tokens, dim=-1).cpu().tolist()
    return (
        [vectors[i, : len(p)] for i, p in enumerate(positions)],
        [following[i][: len(p)] for i, p in enumerate(positions)],
    )


def _branch_mask(
    at: torch.Tensor, width: int, step: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Additive mask [batch, 1, branches, width + step * branches]: own prefix, own branch."""
    batch, branches = at.shape
    document = torch.arange(width, device=device)[None, None, :] <= at[:, :, None]
    own = torch.eye(branches, dtype=torch.bool, device=device).repeat(1, step)
    allowed = torch.cat([document, own.expand(batch, -1, -1)], dim=-1)[:, None]
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)


def _precision(
    options: CollectOptions, device: torch.device
) -> contextlib.AbstractContextManager[Any]:
    if options.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def write_shard(
    path: Path,
    conversations: Sequence[Conversation],
    positions: Sequence[Sequence[int]],
    vectors: Sequence[torch.Tensor],
    following: Sequence[list[list[int]]],
    special: frozenset[int],
) -> None:
    """Write one shard atomically; ``activation_vector`` is float16 [d], as in recordings."""
    rows = [
        {
            "digest": c.document.digest,
            "source": c.document.source,
            "theme": c.document.theme,
            "split": c.split,
            "position": p,
            "phase": _phase(c, p),
            "content": is_content(c.token_ids, p, special),
            "token_id": c.token_ids[p],
            "last_ids": list(c.token_ids[max(0, p - CONTEXT_TOKENS + 1) : p + 1]),
            "next_ids": following[i][j],
            "reply_ids": list(c.token_ids[c.prompt_tokens : p + 1]),
        }
        for i, c in enumerate(conversations)
        for j, p in enumerate(positions[i])
    ]
    flat = torch.cat(list(vectors)).to(torch.float16).numpy()
    table = pa.Table.from_pylist(rows)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    table = table.append_column("activation_vector", column)
    temporary = path.with_suffix(".partial")
    pq.write_table(table, temporary)
    temporary.replace(path)


def _phase(conversation: Conversation, position: int) -> str:
    return "prompt" if position < conversation.prompt_tokens else "completion"


def collect(
    model: Any,
    tokenizer: Any,
    documents: Sequence[tuple[TrainingDocument, str]],
    directory: Path,
    options: CollectOptions,
    *,
    seed: int,
    reply_model: Any | None = None,
) -> Iterator[tuple[int, int]]:
    """Collect every batch that has no shard yet; yields (batches done, batches in all).

    Batches are cut from documents sorted by length, so that padding stays small, and run in a
    shuffled order, so that the shards of an unfinished run are a fair sample. Shard names number
    the batches, which makes a killed run resume where it stopped.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ordered = sorted(documents, key=lambda pair: (len(pair[0].text), pair[0].digest))
    size = options.batch_size
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    special = frozenset(tokenizer.all_special_ids)
    opening = opening_tokens(tokenizer)
    order = np.random.default_rng(seed).permutation(len(batches)).tolist()[: options.max_batches]
    for done, number in enumerate(order):
        batch = batches[number]
        path = directory / f"shard-{number:05d}.parquet"
        if not path.exists():
            rng = np.random.default_rng([seed, number])
            conversations = reply(reply_model or model, tokenizer, batch, options)
            positions = [choose_positions(c, special, opening, options, rng) for c in conversations]
            vectors, following = measure(model, conversations, positions, options)
            write_shard(path, conversations, positions, vectors, following, special)
        yield done + 1, len(order)
