"""Collected shards as training examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nae_monitor.errors import InputDataError
from nae_monitor.train.conversations import opening_tokens
from nae_monitor.train.shards import read_shard
from nae_monitor.train.targets import Target, make_target, special_words
from nae_monitor.train.themes import theme_of


@dataclass(frozen=True, eq=False, slots=True)
class Examples:
    """Rows of one split: vectors [n, d] float32 beside their targets and labels."""

    vectors: torch.Tensor
    targets: tuple[Target, ...]
    digests: tuple[str, ...]  # of the documents: intervals cluster by it
    content: torch.Tensor  # [n] bool: no template token within one place, not the system prompt
    token_ids: torch.Tensor  # [n]

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, index: Sequence[int] | np.ndarray | torch.Tensor) -> Examples:
        """The rows at ``index``, in that order."""
        rows = torch.as_tensor(np.asarray(index), dtype=torch.long)
        where = rows.tolist()
        return Examples(
            self.vectors[rows],
            tuple(self.targets[i] for i in where),
            tuple(self.digests[i] for i in where),
            self.content[rows],
            self.token_ids[rows],
        )


def load_examples(
    directory: Path,
    tokenizer: Any,
    split: str,
    *,
    norm_quantile: float = 0.995,
    d_model: int | None = None,
) -> Examples:
    """Read every shard of ``directory`` and keep one split, norm outliers left out.

    Args:
        directory: where the collect stage wrote.
        tokenizer: the target's.
        split: ``train``, ``validation``, ``test`` or ``ood``.
        norm_quantile: rows with a norm above this quantile are dropped, and so are zero and
            non-finite ones.
        d_model: width that the vectors must have; None takes the first shard's.

    Raises:
        InputDataError: no shard, a damaged or foreign one, or no usable row of that split.
    """
    files = sorted(directory.glob("shard-*.parquet"))
    if not files:
        raise InputDataError(f"{directory} holds no shards; run the collect stage first")
    vectors: list[np.ndarray] = []
    rows: list[dict[str, Any]] = []
    for file in files:
        part, found = read_shard(file, split, d_model)
        d_model = part.shape[1]
        vectors.append(part)
        rows += found
    every = _examples(torch.from_numpy(np.concatenate(vectors)).float(), rows, tokenizer)
    examples = every.select(_usable(every.vectors, norm_quantile).nonzero().flatten())
    if not len(examples):
        raise InputDataError(
            f"{directory} holds no usable rows of the split {split!r}; collect more documents, "
            "or give that split a larger share"
        )
    return examples


def _examples(vectors: torch.Tensor, rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> Examples:
    opening = opening_tokens(tokenizer)
    words = special_words(tokenizer)
    into_message = [row["position"] - opening + 1 for row in rows]
    return Examples(
        vectors,
        tuple(
            make_target(
                tokenizer,
                words,
                theme=theme_of(row["digest"], row["kind"]),
                user_tokens=user_tokens,
                last_ids=row["last_ids"],
                top_ids=row["top_ids"],
                reply_ids=row["reply_ids"],
            )
            for row, user_tokens in zip(rows, into_message, strict=True)
        ),
        tuple(row["digest"] for row in rows),
        torch.tensor(
            [row["content"] and n > 0 for row, n in zip(rows, into_message, strict=True)],
            dtype=torch.bool,
        ),
        torch.tensor([row["token_id"] for row in rows], dtype=torch.long),
    )


def _usable(vectors: torch.Tensor, norm_quantile: float) -> torch.Tensor:
    """Which rows [n] have a finite norm above 0 and not among the largest."""
    norms: torch.Tensor = vectors.norm(dim=-1)
    usable = torch.isfinite(norms) & (norms > 0)
    if usable.any():
        usable &= norms <= norms[usable].quantile(norm_quantile)
    return usable
