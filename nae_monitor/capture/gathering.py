"""Decode steps that are gathered, since handing rows on costs far more than keeping them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from nae_monitor.capture.sequences import Sequences
from nae_monitor.host_copy import Copier, HostCopy, to_host


@dataclass(frozen=True, eq=False, slots=True)
class Steps:
    """Decode steps of ``S`` sequences, the oldest first."""

    token_ids: Sequence[Sequence[int]]  # [steps][S], what each step was fed
    vectors: torch.Tensor | None  # [steps seen * S, d]; None where no step's block was seen
    seen: Sequence[bool]  # [steps]: whether the block was; the others have no vectors


class GatheredSteps:
    """Keeps what decode steps were fed and what the block made of it.

    A step costs two small copies and no look at the device: a Python object touched between two
    forward passes is fetched from memory, because the model's weights have emptied the caches, so
    that the same work is several times cheaper done for many steps at once.

    Args:
        limit_steps: as many are due.
        limit_s: so long after the first of them they are due, fewer or not.
        copier: starts the copy of a step's token ids to the CPU.
    """

    def __init__(self, limit_steps: int, limit_s: float, copier: Copier = to_host) -> None:
        self._limit_steps = limit_steps
        self._limit_s = limit_s
        self._copier = copier
        self._token_ids: list[HostCopy] = []  # each [S, 1]
        self._vectors: list[torch.Tensor | None] = []  # each [S, d]
        self._since_s = 0.0
        self.waits_for_block = False

    def __len__(self) -> int:
        return len(self._token_ids)

    def begin(self, token_ids: torch.Tensor) -> None:
        """A step over ``token_ids`` ``[S, 1]`` is about to run."""
        self._close()
        if not self._token_ids:
            self._since_s = time.monotonic()
        # Now, so that it need not wait for the pass. A clone, since the host may write its next
        # tokens into the same place.
        self._token_ids.append(self._copier(token_ids.clone()))
        self.waits_for_block = True

    def keep(self, vectors: torch.Tensor) -> bool:
        """Copy the block's output of the step that runs, ``[S, d]``; whether the steps are due."""
        self._vectors.append(vectors.clone())
        self.waits_for_block = False
        full = len(self._token_ids) >= self._limit_steps
        return full or time.monotonic() - self._since_s >= self._limit_s

    def take(self) -> Steps | None:
        """Everything gathered, which is not kept any longer; None where there is nothing."""
        if not self._token_ids:
            return None
        self._close()
        token_ids, vectors = self._token_ids, self._vectors
        self._token_ids, self._vectors = [], []
        kept = [one for one in vectors if one is not None]
        # Copied before the passes that they were fed to, so they are here but for a rare wait.
        columns = torch.cat([step.wait() for step in token_ids], dim=1).T.tolist()
        rows = torch.cat(kept) if kept else None
        return Steps(columns, rows, [one is not None for one in vectors])

    def _close(self) -> None:
        """The step that runs, if any, will not show its block any more."""
        if self.waits_for_block:
            self._vectors.append(None)
            self.waits_for_block = False


class StepRow(NamedTuple):
    """A row of a step; rows sort by sequence and then by step."""

    sequence: int
    position: int
    token_id: int
    at: int  # its row of the steps' vectors


@dataclass(frozen=True, eq=False, slots=True)
class Learned:
    """What gathered steps hold. ``excluded`` and ``lost`` name the sequence of each such token."""

    told: Sequence[Sequence[int]]  # [S]: new tokens of each sequence
    rows: Sequence[StepRow]
    excluded: Sequence[int]  # not wanted
    lost: Sequence[int]  # wanted, and their block was not seen


def learn_steps(steps: Steps, sequences: Sequences, first_position: int | None) -> Learned:
    """Append every step's column to ``sequences``, as processed.

    Args:
        steps: in order.
        sequences: what the steps were fed so far.
        first_position: rows before it are not wanted; None: no row is.
    """
    told: list[list[int]] = [[] for _ in range(sequences.count)]
    rows: list[StepRow] = []
    excluded: list[int] = []
    lost: list[int] = []
    start = 0  # of the step in the vectors
    for token_ids, seen in zip(steps.token_ids, steps.seen, strict=True):
        for sequence in sequences.learn_column(token_ids):
            token_id = token_ids[sequence]
            told[sequence].append(token_id)
            position = sequences.known_length(sequence) - 1
            if first_position is None or position < first_position:
                excluded.append(sequence)
            elif seen:
                rows.append(StepRow(sequence, position, token_id, start + sequence))
            else:
                lost.append(sequence)
        start += sequences.count if seen else 0
    sequences.next_column = sequences.known_columns
    rows.sort()
    return Learned(told, rows, excluded, lost)
