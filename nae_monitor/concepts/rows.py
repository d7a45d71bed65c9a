"""Labelled rows: what a collection of ``nla train`` holds, as unit vectors with their documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nae_monitor.errors import InputDataError
from nae_monitor.train.shards import read_shard
from nae_monitor.train.themes import KINDS, theme_of

Unit = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class LabelledRows:
    """Rows of content positions; those of one document stand together under its number."""

    unit: Unit  # [n, d], of Euclidean length 1
    documents: NDArray[np.int64]  # [n], from 0
    kinds: NDArray[np.str_]  # [n]
    hostile: NDArray[np.bool_]  # [n]: the document's kind is one of those that ask for harm
    is_prompt: NDArray[np.bool_]  # [n]
    positions: NDArray[np.int64] | None = None  # [n], tokens from 0, ascending in a document

    def __len__(self) -> int:
        return len(self.unit)

    @property
    def ordinary(self) -> LabelledRows:
        """Those of documents that are not hostile."""
        return self.where(~self.hostile)

    def where(self, wanted: NDArray[np.bool_]) -> LabelledRows:
        """The rows for which ``wanted`` [n] is true."""
        return LabelledRows(
            self.unit[wanted], self.documents[wanted], self.kinds[wanted],
            self.hostile[wanted], self.is_prompt[wanted],
            None if self.positions is None else self.positions[wanted],
        )  # fmt: skip

    def and_also(self, other: LabelledRows) -> LabelledRows:
        """These rows, and those of other documents behind them."""
        known = self.positions is not None and other.positions is not None
        return LabelledRows(
            np.concatenate([self.unit, other.unit]),
            np.concatenate([self.documents, other.documents + self.documents.max(initial=-1) + 1]),
            np.concatenate([self.kinds, other.kinds]),
            np.concatenate([self.hostile, other.hostile]),
            np.concatenate([self.is_prompt, other.is_prompt]),
            np.concatenate([self.positions, other.positions]) if known else None,
        )

    @property
    def runs(self) -> NDArray[np.int64]:
        """A number a row [n]: rows of one number follow one another, token by token."""
        if self.positions is None:
            return np.arange(len(self))
        same = (np.diff(self.documents) == 0) & (np.diff(self.positions) == 1)
        return np.concatenate([[0], np.cumsum(~same)])[: len(self)].astype(np.int64)

    def halves(self, share: float) -> tuple[LabelledRows, LabelledRows]:
        """The rows of the first ``share`` of the documents in their own order, and the others."""
        first = self.documents < share * (self.documents.max(initial=0) + 1)
        return self.where(first), self.where(~first)


def read_collection(directory: Path, splits: Sequence[str]) -> LabelledRows:
    """Content rows of some splits of a collection, as :mod:`nae_monitor.train.collect` writes it.

    Raises:
        InputDataError: no shards, damaged ones, or none of these rows.
    """
    files = sorted(directory.glob("shard-*.parquet"))
    if not files:
        raise InputDataError(f"{directory} holds no shards; run `nae-monitor nla train` first")
    vectors, rows = [], []
    for file in files:
        for split in splits:
            part, found = read_shard(file, split)
            kept = np.array([bool(row["content"]) for row in found], dtype=bool)
            vectors.append(part[kept])
            rows += [row for row, keep in zip(found, kept, strict=True) if keep]
    every = np.concatenate(vectors).astype(np.float64)
    norms = np.linalg.norm(every, axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    if not usable.any():
        raise InputDataError(f"{directory} holds no usable rows of {', '.join(splits)}")
    kinds = np.array([theme_of(str(row["digest"]), str(row["kind"])).kind for row in rows])
    _, documents = np.unique([str(row["digest"]) for row in rows], return_inverse=True)
    hostile = np.array([KINDS[kind].harmful for kind in kinds])
    is_prompt = np.array([row["phase"] == "prompt" for row in rows])
    positions = np.array([row["position"] for row in rows], dtype=np.int64)
    return LabelledRows(
        every[usable] / norms[usable, None],
        documents[usable].astype(np.int64),
        kinds[usable],
        hostile[usable],
        is_prompt[usable],
        positions[usable],
    )
