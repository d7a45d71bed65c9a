"""A small collection with a concept in its hostile rows, as ``nla train`` would leave one."""

from __future__ import annotations

from pathlib import Path

import torch

from nae_monitor.train.conversations import Conversation
from nae_monitor.train.corpus import TrainingDocument
from nae_monitor.train.shards import Measured, write_shard

POSITIONS = (3, 4, 8, 9)
DOCUMENTS = {"train": 40, "validation": 24, "test": 24}


def write_collection(directory: Path, d_model: int, first: torch.Tensor | None = None) -> None:
    """Shards of four rows a document; every second document is hostile and leans one way.

    ``first`` replaces the first row of all.
    """
    random = torch.Generator().manual_seed(0)
    for number, (split, count) in enumerate(DOCUMENTS.items()):
        conversations, measured = [], []
        for document in range(count):
            kind = "cyber" if document % 2 else "facts"
            text = TrainingDocument(f"{split} {document}", "tests", kind)
            conversations.append(Conversation(text, split, tuple(range(1, 13)), prompt_tokens=6))
            vectors = torch.randn(len(POSITIONS), d_model, generator=random) + 2
            vectors[:, 0] += 4.0 * (kind == "cyber")
            measured.append(Measured(vectors, [[1]] * 4, [[1, 2]] * 4))
        if first is not None and split == "train":
            measured[0].vectors[0] = first
        path = directory / f"shard-{number:05d}.parquet"
        positions = [POSITIONS] * count
        write_shard(path, conversations, positions, measured, frozenset(), d_model)
