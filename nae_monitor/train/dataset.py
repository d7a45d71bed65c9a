"""Collected shards as training examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from nae_monitor.errors import InputDataError
from nae_monitor.train.collect import opening_tokens
from nae_monitor.train.targets import SYSTEM_THEME, Target, make_target


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
    directory: Path, tokenizer: Any, split: str, *, norm_quantile: float = 0.995
) -> Examples:
    """Read every shard of ``directory`` and keep one split, norm outliers left out.

    Raises:
        InputDataError: no shard, or no row of that split.
    """
    files = sorted(directory.glob("shard-*.parquet"))
    if not files:
        raise InputDataError(f"{directory} holds no shards; run the collect stage first")
    opening = opening_tokens(tokenizer)
    vectors: list[np.ndarray] = []
    targets: list[Target] = []
    digests: list[str] = []
    content: list[bool] = []
    token_ids: list[int] = []
    for file in files:
        table = pq.read_table(file, filters=[("split", "=", split)])
        if not table.num_rows:
            continue
        column = table.column("activation_vector").combine_chunks()
        vectors.append(np.asarray(column.flatten()).reshape(table.num_rows, -1))
        for row in table.drop_columns(["activation_vector"]).to_pylist():
            early = row["position"] < opening
            targets.append(
                make_target(
                    tokenizer,
                    theme=SYSTEM_THEME if early else row["theme"],
                    last_ids=row["last_ids"],
                    next_ids=row["next_ids"],
                    reply_ids=row["reply_ids"],
                )
            )
            digests.append(row["digest"])
            content.append(row["content"] and not early)
            token_ids.append(row["token_id"])
    if not targets:
        raise InputDataError(f"{directory} holds no rows of the split {split!r}")
    examples = Examples(
        torch.from_numpy(np.concatenate(vectors)).float(),
        tuple(targets),
        tuple(digests),
        torch.tensor(content),
        torch.tensor(token_ids),
    )
    norms = examples.vectors.norm(dim=-1)
    usable = torch.isfinite(norms) & (norms > 0) & (norms <= norms.quantile(norm_quantile))
    return examples.select(usable.nonzero().flatten())
