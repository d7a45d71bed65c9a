"""Rows that are known before the block's output is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nae_monitor.records import Phase, Request, RowBatch


@dataclass(eq=False, slots=True)
class Pending:
    """Rows of one or several passes, side by side, one entry a row."""

    sequences: tuple[int, ...]
    positions: tuple[int, ...]
    token_ids: tuple[int, ...]
    phases: tuple[Phase, ...]
    index: torch.Tensor | None  # [n] into the flattened [S * T]; None: every row in order
    shape: tuple[int, int]  # (S, T) of the pass

    def __len__(self) -> int:
        return len(self.sequences)

    def batch(self, requests: Sequence[Request], layer: int, vectors: torch.Tensor) -> RowBatch:
        """The rows with their ``vectors`` ``[n, d]``; ``requests`` is one a sequence."""
        return RowBatch(
            requests=tuple(requests),
            request_index=self.sequences,
            positions=self.positions,
            token_ids=self.token_ids,
            phases=self.phases,
            layer=layer,
            vectors=vectors,
        )


def flat_rows(output: Any, shape: tuple[int, int]) -> torch.Tensor:
    """A block's output over ``shape`` (S, T) as ``[S * T, d]``, without a gradient."""
    hidden = output[0] if isinstance(output, tuple) else output
    if hidden.dim() != 3 or hidden.shape[:2] != shape:
        raise ValueError("the block's output is not [batch, tokens, width]")
    flat: torch.Tensor = hidden.reshape(-1, hidden.shape[-1])
    return flat.detach() if flat.requires_grad else flat
