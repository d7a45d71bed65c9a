"""The next token of each row, the same whatever the batch.

Floating-point results differ in the last bits with the shape of a batch, which may flip a near
tie. So wherever the best two scores lie closer than ``NEAR_TIE`` times the best (noise between
batch shapes, measured: about 2e-6), the row is scored again alone, from the start and without a
cache, and that answer counts. A decision is then either far outside the noise or always taken on
the same shape. This holds in float32, where it is tested; in half precision and with 8-bit weights
the noise is of the size of ordinary gaps and ties are left as they fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nae_monitor.decode.engines.screened_head import Best
from nae_monitor.decode.prompts import Sampling

NEAR_TIE = 3e-5


@dataclass(slots=True)
class Row:
    """One text being written."""

    index: int
    prompt: torch.Tensor  # [T, d]
    noise: torch.Generator | None
    ids: list[int] = field(default_factory=list)

    @classmethod
    def begun(cls, index: int, prompt: torch.Tensor, sampling: Sampling) -> Row:
        """Of prompt ``index``; each sample draws by a seed of its own."""
        if sampling.is_greedy:
            return cls(index, prompt, None)
        return cls(index, prompt, torch.Generator().manual_seed(sampling.seeds[index]))


class NextTokens:
    """Appends to rows the tokens that follow.

    Args:
        model: scores near ties alone; None where ties are left as they fall.
        embed: its token embedding.
    """

    def __init__(self, model: Any, embed: Any) -> None:
        self._model = model
        self._embed = embed

    def extend(self, logits: torch.Tensor, rows: Sequence[Row], sampling: Sampling) -> None:
        """By logits [n, vocabulary]: the largest, or the largest with Gumbel noise added.

        Adding Gumbel noise and taking the largest draws from the softmax exactly, and lets the
        near-tie rule serve both modes.
        """
        noise = None if sampling.is_greedy else _noise(rows, logits) * sampling.temperature
        self._settle(Best.of(logits if noise is None else logits + noise), rows, noise)

    def extend_by(self, best: Best, rows: Sequence[Row]) -> None:
        """By the best two scores of each row, greedily."""
        self._settle(best, rows, None)

    def _settle(self, best: Best, rows: Sequence[Row], noise: torch.Tensor | None) -> None:
        ids: list[int] = best.ids.tolist()
        if self._model is not None:
            first, second = best.scores.T
            close = first - second < NEAR_TIE * first.abs().clamp(min=1)
            for i in close.nonzero().flatten().tolist():
                alone = self._score_alone(rows[i])
                ids[i] = int((alone if noise is None else alone + noise[i]).argmax())
        for row, token_id in zip(rows, ids, strict=True):
            row.ids.append(token_id)

    def _score_alone(self, row: Row) -> torch.Tensor:
        """Logits [vocabulary] of one row by itself, from its first token."""
        ids = torch.tensor(row.ids, dtype=torch.long, device=row.prompt.device)
        whole = torch.cat([row.prompt, self._embed(ids)])[None]
        output = self._model(inputs_embeds=whole, use_cache=False, logits_to_keep=1)
        logits: torch.Tensor = output.logits[0, -1].float()
        return logits


def _noise(rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise from each row's own generator, like ``logits``."""
    noise = torch.zeros(logits.shape)
    for i, row in enumerate(rows):
        if row.noise is not None:
            noise[i].exponential_(generator=row.noise).clamp_(min=1e-30).log_().neg_()
    return noise.to(logits.device)
