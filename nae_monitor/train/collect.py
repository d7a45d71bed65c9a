"""Run the target over the corpus: replies, activations at layer K, and what it would say next.

One row is one token position of one conversation: the residual stream ``hidden_states[K]``, the
tokens before it and the target's own greedy continuation. The continuation of many positions of
one document is decoded at once: each position grows a branch of its own behind the document's
key-value cache, kept apart by the attention mask.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nae_monitor.train.conversations import (
    CollectOptions,
    Conversation,
    choose_positions,
    opening_tokens,
    reply,
)
from nae_monitor.train.corpus import TrainingDocument
from nae_monitor.train.files import make_directory
from nae_monitor.train.shards import Measured, write_shard

NEXT_TOKENS = 6  # greedy continuation kept
TOP_TOKENS = 5  # likeliest next tokens kept
IDENTITY = "collection.json"


@torch.inference_mode()
def measure(
    model: Any,
    conversations: Sequence[Conversation],
    positions: Sequence[Sequence[int]],
    options: CollectOptions,
) -> list[Measured]:
    """Run the target over the conversations, once for each batch.

    Args:
        model: a causal LM in float32 whose every layer attends to the whole prefix.
        conversations: right-padded into one batch; causal attention never reaches the padding.
        positions: of each conversation, any number, possibly none.
        options: the layer, and whether products run in bfloat16.
    """
    device = model.device
    ids, at = (t.to(device) for t in _batch(conversations, positions))
    rows = torch.arange(len(conversations), device=device)[:, None]
    with _precision(options, device):
        out = model.model(input_ids=ids, use_cache=True, output_hidden_states=True)
        vectors = out.hidden_states[options.layer][rows, at].float().cpu()
        logits = model.lm_head(out.last_hidden_state[rows, at])
        top = logits.topk(min(TOP_TOKENS, logits.shape[-1]), dim=-1).indices.cpu().tolist()
        following = _grow(model, out, at, logits.argmax(-1))
    return [
        Measured(vectors[i, : len(p)], following[i][: len(p)], top[i][: len(p)])
        for i, p in enumerate(positions)
    ]


def _batch(
    conversations: Sequence[Conversation], positions: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [b, t] and positions [b, p], padded with zeros: a spare branch grows at position 0."""
    width = max(len(c.token_ids) for c in conversations)
    ids = torch.zeros(len(conversations), width, dtype=torch.long)
    branches = max(1, *(len(p) for p in positions))
    at = torch.zeros(len(conversations), branches, dtype=torch.long)
    for i, conversation in enumerate(conversations):
        ids[i, : len(conversation.token_ids)] = torch.tensor(conversation.token_ids)
        at[i, : len(positions[i])] = torch.tensor(positions[i], dtype=torch.long)
    return ids, at


def _grow(model: Any, out: Any, at: torch.Tensor, token: torch.Tensor) -> list[list[list[int]]]:
    """Greedy continuations of every position [b][p][NEXT_TOKENS] behind the prompt's cache.

    ``token`` [b, p] is the first of each.
    """
    width = out.last_hidden_state.shape[1]
    cache = out.past_key_values
    tokens = [token]
    for step in range(1, NEXT_TOKENS):
        step_out = model.model(
            input_ids=token,
            position_ids=at + step,
            attention_mask=_branch_mask(at, width, step, model.dtype),
            past_key_values=cache,
            use_cache=True,
        )
        token = model.lm_head(step_out.last_hidden_state).argmax(-1)
        tokens.append(token)
    following: list[list[list[int]]] = torch.stack(tokens, dim=-1).cpu().tolist()
    return following


def _branch_mask(at: torch.Tensor, width: int, step: int, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [batch, 1, branches, width + step * branches]: own prefix, own branch.

    Keys lie in the order they were cached: the document, then one token of every branch a step.
    """
    batch, branches = at.shape
    document = torch.arange(width, device=at.device)[None, None, :] <= at[:, :, None]
    own = torch.eye(branches, dtype=torch.bool, device=at.device).repeat(1, step)
    allowed = torch.cat([document, own.expand(batch, -1, -1)], dim=-1)[:, None]
    mask = torch.zeros(allowed.shape, dtype=dtype, device=at.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)


def _precision(
    options: CollectOptions, device: torch.device
) -> contextlib.AbstractContextManager[Any]:
    if options.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def identity(
    target: str,
    documents: Sequence[tuple[TrainingDocument, str]],
    options: CollectOptions,
    seed: int,
) -> str:
    """What determines each shard of a collection, as JSON: kept beside the shards.

    ``max_batches`` does not: raising it adds shards and changes none.
    """
    listing = "\n".join(sorted(f"{d.digest} {d.kind} {split}" for d, split in documents))
    corpus = hashlib.sha256(listing.encode()).hexdigest()
    shape = asdict(replace(options, max_batches=None))
    content = {"target": target, "corpus": corpus, "seed": seed, "options": shape}
    return json.dumps(content, indent=2) + "\n"


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
    the batches, which makes a killed run resume where it stopped. A document that ends before
    ``min_position`` gives no row.

    Raises:
        ConfigurationError: a shard cannot be written.
    """
    make_directory(directory)
    ordered = sorted(documents, key=lambda pair: (len(pair[0].text), pair[0].digest))
    size = options.batch_size
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    special = frozenset(tokenizer.all_special_ids)
    opening = opening_tokens(tokenizer)
    d_model = model.config.get_text_config().hidden_size
    order = np.random.default_rng(seed).permutation(len(batches)).tolist()[: options.max_batches]
    for done, number in enumerate(order):
        path = directory / f"shard-{number:05d}.parquet"
        if not path.exists():
            rng = np.random.default_rng([seed, number])
            talks = reply(reply_model or model, tokenizer, batches[number], options)
            positions = [choose_positions(c, special, opening, options, rng) for c in talks]
            measured = measure(model, talks, positions, options)
            write_shard(path, talks, positions, measured, special, d_model)
        yield done + 1, len(order)
