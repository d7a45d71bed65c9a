"""Conversations with the target: documents rendered, answered greedily, positions chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nae_monitor.train.corpus import TrainingDocument

CONTENT_SHARE = 0.875  # of the chosen positions; the rest stands in or beside the template


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """How much is collected, and at which precision."""

    layer: int  # K: rows are hidden_states[K]
    prompt_tokens: int = 96  # a longer user message is cut
    reply_tokens: int = 24
    positions_per_document: int = 5
    min_position: int = 10
    batch_size: int = 96
    max_batches: int | None = None  # stop after so many, in the shuffled order
    autocast: bool = False  # bfloat16 matrix products, float32 residual stream

    def __post_init__(self) -> None:
        for name in (
            "layer",
            "prompt_tokens",
            "reply_tokens",
            "positions_per_document",
            "batch_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.max_batches is not None and self.max_batches < 1:
            raise ValueError(f"max_batches is {self.max_batches}, must be at least 1 or left out")
        if self.min_position < 0:
            raise ValueError(f"min_position is {self.min_position}, must not be negative")


@dataclass(frozen=True, eq=False, slots=True)
class Conversation:
    """A rendered document with the target's own greedy reply."""

    document: TrainingDocument
    split: str
    token_ids: tuple[int, ...]
    prompt_tokens: int  # the first ``prompt_tokens`` ids are the prompt, template included

    def phase(self, position: int) -> str:
        """``prompt`` or ``completion``."""
        return "prompt" if position < self.prompt_tokens else "completion"


def render(tokenizer: Any, document: TrainingDocument, prompt_tokens: int) -> list[int]:
    """Token ids of the chat-templated prompt with a generation prompt at its end."""
    ids = tokenizer(document.text, add_special_tokens=False).input_ids[:prompt_tokens]
    return _templated(tokenizer, tokenizer.decode(ids))


def opening_tokens(tokenizer: Any) -> int:
    """How many tokens every rendered conversation shares before the user's first word."""
    a, b = (_templated(tokenizer, text) for text in ("alpha", "Zebra"))
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))


def user_turn(tokenizer: Any) -> str:
    """The text that opens a user's turn, without system prompt and without a BOS that the
    tokenizer would add once more, e.g. ``<|im_start|>user\n``.
    """
    first, second, prompted = (
        str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=ask
            )
        )
        for content, ask in (("alpha", False), ("Zebra", False), ("alpha", True))
    )
    opening = first[
        : next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    ]
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    special |= set(tokenizer.all_special_tokens)
    bos = str(tokenizer.bos_token or "")
    begins = bos if bos and opening.startswith(bos) else ""
    asked = prompted[len(first) :]
    turn = max((t for t in special if asked.startswith(t)), key=len, default="")
    if turn and turn in opening:
        opening = opening[opening.rindex(turn) :]
    if not opening.startswith(begins):
        opening = begins + opening
    added = tokenizer("").input_ids
    if added and added[0] == tokenizer.bos_token_id:
        opening = opening.removeprefix(bos)
    return opening


def _templated(tokenizer: Any, content: str) -> list[int]:
    return list(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
        )
    )


@torch.inference_mode()
def reply(
    model: Any,
    tokenizer: Any,
    documents: Sequence[tuple[TrainingDocument, str]],
    options: CollectOptions,
) -> list[Conversation]:
    """Generate greedy replies for one batch of documents, each cut at its end of sequence."""
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
    stops = _stop_ids(model, tokenizer)
    conversations = []
    for (document, split), prompt, row in zip(documents, prompts, out.tolist(), strict=True):
        new = row[width:]
        end = next((i for i, token in enumerate(new) if token in stops), len(new))
        conversations.append(Conversation(document, split, (*prompt, *new[:end]), len(prompt)))
    return conversations


def _stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """Every id that ends a reply: some models have several, and pad after any of them."""
    own = model.generation_config.eos_token_id
    several = own if isinstance(own, list) else [own]
    return {token for token in (*several, tokenizer.eos_token_id) if token is not None}


def choose_positions(
    conversation: Conversation,
    special: frozenset[int],
    opening: int,
    options: CollectOptions,
    rng: np.random.Generator,
) -> list[int]:
    """Positions to keep: content of prompt and reply mostly, one in eight from the template.

    The first ``opening`` tokens are the same in every conversation and count as template. Empty
    where the conversation ends before ``min_position``.
    """
    ids = conversation.token_ids
    eligible = range(options.min_position, len(ids))
    content = [p for p in eligible if p >= opening and is_content(ids, p, special)]
    inside = set(content)
    other = [p for p in eligible if p not in inside]
    chosen: set[int] = set()
    while len(chosen) < min(options.positions_per_document, len(eligible)):
        pool = content if content and (rng.random() < CONTENT_SHARE or not other) else other
        chosen.add(int(pool[rng.integers(len(pool))]))
    return sorted(chosen)


def is_content(token_ids: Sequence[int], position: int, special: frozenset[int]) -> bool:
    """Whether no template token lies within one place of ``position``."""
    return not any(t in special for t in token_ids[max(0, position - 1) : position + 2])
