"""How well a text tells its own vector from its nearest others, by the reconstructor.

The plain reconstruction score rewards what every vector has in common and let training collapse
to templates; the score of the own vector less that of hard negatives does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from nae_monitor.train.sampling import Sampled
from nae_monitor.train.written import as_target


@dataclass(frozen=True, slots=True)
class Choice:
    """The best text of one row. Scores are cosines of centred directions, own less others."""

    row: int
    greedy: str | None
    greedy_score: float | None  # None: not closed, out of form, or not finite
    best: str | None  # None: no text of the row can be used
    best_score: float | None


def centred(vectors: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Unit directions [n, d] from the mean m [d] of unit vectors."""
    return normalize(normalize(vectors, dim=-1) - mean, dim=-1)


def hard_negatives(own: torch.Tensor, documents: Sequence[str], count: int) -> torch.Tensor:
    """Indices [n, k] of each row's nearest rows of other documents, k at most ``count``.

    Args:
        own: centred directions [n, d].
        documents: of each row: neighbours in one document are no fair negatives.
        count: how many.
    """
    names = {name: i for i, name in enumerate(dict.fromkeys(documents))}
    of = torch.tensor([names[d] for d in documents])
    fewest = len(of) - int(torch.bincount(of).max()) if len(of) else 0
    k = min(count, fewest)
    parts = []
    for start in range(0, len(own), 1024):
        near = own[start : start + 1024] @ own.T
        near[of[start : start + 1024, None] == of[None, :]] = -torch.inf
        parts.append(near.topk(k, dim=-1).indices)
    return torch.cat(parts)


def contrastive_scores(
    predicted: torch.Tensor, own: torch.Tensor, others: torch.Tensor
) -> torch.Tensor:
    """Scores [n]: cosine with the own direction less the mean over negatives [n, k, d]."""
    right = (predicted * own).sum(-1)
    if not others.shape[1]:
        return right
    wrong: torch.Tensor = torch.einsum("nd,nkd->nk", predicted, others).mean(-1)
    return right - wrong


def choose(sampled: Sequence[Sampled], scores: Sequence[Sequence[float]]) -> list[Choice]:
    """The best usable text of every row: closed, in form, with a finite score.

    The greedy text wins a tie: nothing is learnt from it that is not known.
    """
    choices = []
    for one, own in zip(sampled, scores, strict=True):
        usable = [
            (score, -place, text)
            for place, (text, score) in enumerate(zip(one.texts, own, strict=True))
            if text and torch.isfinite(torch.tensor(score)) and as_target(text)
        ]
        best = max(usable, default=None)
        greedy = next((u for u in usable if u[1] == 0), None)
        choices.append(
            Choice(
                one.row,
                one.texts[0],
                greedy[0] if greedy else None,
                best[2] if best else None,
                best[0] if best else None,
            )
        )
    return choices
