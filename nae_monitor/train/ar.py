"""Train the activation reconstructor: explanation in, direction of the activation out.

The blocks of the target up to the layer that was collected, without final norm, adapters on every
linear layer, and a ``Linear(d, d, bias=False)`` read at the last token. The head starts from its
least-squares fit on the frozen blocks, the adapters from there. The loss is 1 - cosine, half the
mean squared error of unit vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from nae_monitor.train.batches import padded
from nae_monitor.train.conversations import user_turn

RIDGE = 3e-4  # of the head's closed form, as a share of the mean squared state


class Trunk(nn.Module):
    """The first ``blocks`` blocks of a causal LM and the head; returns [b, d] float32."""

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
        result: torch.Tensor = self.head(self.states(ids, mask))
        return result.float()

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The last token's residual stream [b, d] float32, which the head maps."""
        base = self.body.get_base_model() if hasattr(self.body, "get_base_model") else self.body
        hidden = base.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last: torch.Tensor = hidden[torch.arange(len(ids), device=ids.device), mask.sum(-1) - 1]
        return last.float()


def ar_template(tokenizer: Any) -> str:
    """The reconstructor's prompt: a user's turn that is the explanation, left open.

    Nothing stands behind the explanation. It ends with the words before the activation, so the
    last token's state, which the head reads, is already near the target's own.
    """
    turn = user_turn(tokenizer).replace("{", "{{").replace("}", "}}")
    return turn + "{explanation}"


def encode_explanations(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the AR prompts, raw text with the tokenizer's own special tokens."""
    template = ar_template(tokenizer)
    prompts = [template.format(explanation=text) for text in texts]
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
def fit_head(trunk: Trunk, tokenizer: Any, texts: Sequence[str], vectors: torch.Tensor) -> None:
    """Set the head to the ridge regression of unit vectors [n, d] on the blocks' states."""
    states = normalize(_over_texts(trunk.states, trunk, tokenizer, texts), dim=-1).double()
    gram = states.T @ states
    ridge = RIDGE * gram.diagonal().sum() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram + ridge, states.T @ normalize(vectors, dim=-1).double())
    trunk.head.weight.copy_(weight.T.float())


@torch.no_grad()
def reconstruct(
    trunk: Trunk, tokenizer: Any, texts: Sequence[str], batch_size: int = 64
) -> torch.Tensor:
    """Vectors [n, d] float32 for the explanations."""
    return _over_texts(trunk, trunk, tokenizer, texts, batch_size)


def _over_texts(
    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    trunk: Trunk,
    tokenizer: Any,
    texts: Sequence[str],
    batch_size: int = 64,
) -> torch.Tensor:
    """``run`` over batches of similar length, its rows [n, d] in the order of the texts."""
    rows = encode_explanations(tokenizer, texts)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    device = trunk.head.weight.device
    out = torch.zeros(len(rows), trunk.head.out_features)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        ids, mask = padded([rows[i] for i in part], pad=0)
        out[part] = run(ids.to(device), mask.to(device)).cpu()
    return out
