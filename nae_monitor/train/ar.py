"""Train the activation reconstructor: explanation in, direction of the activation out.

The first K+1 blocks of the target without final norm, adapters on every linear layer, and an
identity-initialised ``Linear(d, d, bias=False)`` read at the last token of a prompt with a fixed
suffix. The loss is 1 - cosine, half the mean squared error of unit vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from nae_monitor.train.av import unfit_tokenizer
from nae_monitor.train.batches import padded

AR_TEMPLATE = "<explanation>{explanation}</explanation>\nVector:"
AR_SUFFIX = "\nVector:"
# Ends of explanations that tokenizers are likely to merge with what follows.
_PROBES = ("a", "b?", 'c"', "d\n", "e ", "f<", "", "7", "\u00e9", "\u4e2d")


class Trunk(nn.Module):
    """Blocks 0..K of a causal LM and the head; returns [b, d] float32."""

    def __init__(self, model: Any, blocks: int) -> None:
        super().__init__()
        self.body = model
        body = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
        body.layers = nn.ModuleList(list(body.layers)[:blocks])
        body.norm = nn.Identity()
        d_model = model.config.hidden_size
        device = next(model.parameters()).device
        self.head = nn.Linear(d_model, d_model, bias=False, device=device)
        nn.init.eye_(self.head.weight)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Reconstruct from right-padded prompts ``ids`` [b, t] under ``mask`` [b, t]."""
        base = self.body.get_base_model() if hasattr(self.body, "get_base_model") else self.body
        hidden = base.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(ids), device=ids.device), mask.sum(-1) - 1]
        result: torch.Tensor = self.head(last.float())
        return result.float()


def suffix_ids(tokenizer: Any) -> list[int]:
    """The ids with which every AR prompt ends, whatever the explanation.

    The suffix's own ids where they survive behind every explanation; else, for tokenizers that
    join its line break to the closing tag, what all prompts share at their end.

    Raises:
        ModelError: they share nothing, as with a tokenizer that adds an end-of-sequence token.
    """
    prompts = encode_explanations(tokenizer, _PROBES)
    plain: list[int] = tokenizer(AR_SUFFIX, add_special_tokens=False).input_ids
    if all(ids[-len(plain) :] == plain for ids in prompts):
        return plain
    shared = 0
    while all(ids[-shared - 1 :] == prompts[0][-shared - 1 :] for ids in prompts):
        shared += 1
    text = str(tokenizer.decode(prompts[0][len(prompts[0]) - shared :]))
    if not shared or not text.endswith(":"):
        message = "does not end every reconstructor prompt with the same suffix"
        raise unfit_tokenizer(tokenizer, message, "it must add no token at the end of a text")
    return prompts[0][-shared:]


def encode_explanations(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the AR prompts, raw text with the tokenizer's own special tokens."""
    prompts = [AR_TEMPLATE.format(explanation=text) for text in texts]
    return list(tokenizer(prompts).input_ids) if prompts else []


def shortened(text: str, rng: np.random.Generator) -> str:
    """A random beginning or a single part of an explanation, so that short decodes work."""
    parts = text.split("; ")
    if rng.random() < 0.5:
        return parts[int(rng.integers(len(parts)))]
    words = text.split(" ")
    return " ".join(words[: int(rng.integers(1, len(words) + 1))])


def ar_loss(
    predicted: torch.Tensor, vectors: torch.Tensor, mean: torch.Tensor, *, contrast: float
) -> torch.Tensor:
    """1 - cosine, plus a contrastive term on centred directions within the batch.

    The second term asks that a reconstruction be nearer to its own vector than to the batch's
    others, which is what retrieval measures.
    """
    loss = (1 - cosine_similarity(predicted, vectors, dim=-1)).mean()
    if contrast:
        own = normalize(normalize(predicted, dim=-1) - mean, dim=-1)
        other = normalize(normalize(vectors, dim=-1) - mean, dim=-1)
        labels = torch.arange(len(own), device=own.device)
        loss = loss + contrast * cross_entropy(own @ other.T * 20.0, labels)
    return loss


@torch.no_grad()
def reconstruct(
    trunk: Trunk, tokenizer: Any, texts: Sequence[str], batch_size: int = 64
) -> torch.Tensor:
    """Vectors [n, d] float32 for the explanations, sorted by length inside."""
    rows = encode_explanations(tokenizer, texts)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    device = trunk.head.weight.device
    out = torch.zeros(len(rows), trunk.head.out_features)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        ids, mask = padded([rows[i] for i in part], pad=0)
        out[part] = trunk(ids.to(device), mask.to(device)).cpu()
    return out
