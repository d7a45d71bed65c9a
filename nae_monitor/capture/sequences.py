"""Bookkeeping of a batch of growing sequences: which column of which row is a real token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """Real tokens of a range of columns, by sequence and then by column; all arrays ``[n]``."""

    sequence: NDArray[np.int64]
    column: NDArray[np.int64]
    position: NDArray[np.int64]  # tokens from the sequence's first real one
    token_id: NDArray[np.int64]  # -1: unknown

    def __len__(self) -> int:
        return len(self.sequence)

    def where(self, keep: NDArray[np.bool_]) -> Rows:
        """The rows at which ``keep`` ``[n]`` is true."""
        if keep.all():
            return self
        return Rows(
            self.sequence[keep], self.column[keep], self.position[keep], self.token_id[keep]
        )


class Sequences:
    """``S`` sequences side by side, a prompt of ``C`` columns and one further column a step.

    Args:
        token_ids: ``[S, C]``, -1 where unknown.
        real: ``[S, C]``, False at padding.
        first_column: columns before it were processed earlier and lie in a cache.
        eos_token_ids: a sequence ends with the first of these that it samples.
        early_pad: where a sequence may end without such a token, the padding that then follows;
            None where it cannot. With it a padding token is always taken for padding.
    """

    def __init__(
        self,
        token_ids: NDArray[np.int64],
        real: NDArray[np.bool_],
        first_column: int,
        eos_token_ids: frozenset[int],
        early_pad: int | None,
    ) -> None:
        self.count, self.prompt_columns = token_ids.shape
        self.known_columns = self.prompt_columns
        self.next_column = first_column  # the first one not processed yet
        self._ids = token_ids
        self._real = real
        self._positions = np.cumsum(real, axis=1, dtype=np.int64) - 1
        self._length = real.sum(axis=1).astype(np.int64)
        self._live = np.ones(self.count, dtype=np.bool_)
        self._eos = np.array(sorted(eos_token_ids), dtype=np.int64)
        self._early_pad = early_pad
        self._last = np.full(self.count, np.iinfo(np.int64).max, dtype=np.int64)

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """``[S, known_columns]``."""
        return self._ids[:, : self.known_columns]

    @property
    def real(self) -> NDArray[np.bool_]:
        """``[S, known_columns]``."""
        return self._real[:, : self.known_columns]

    def known_tokens(self, sequence: int) -> tuple[int, ...]:
        """The known real tokens of one sequence, in order."""
        ids = self.token_ids[sequence][self.real[sequence]]
        return tuple(ids[ids >= 0].tolist())

    def learn(self, token_ids: NDArray[np.int64]) -> list[tuple[int, ...]]:
        """Append sampled columns ``[S, T]``; returns the real new tokens of each sequence."""
        first = self.known_columns
        self._reserve(first + token_ids.shape[1])
        for column in token_ids.T:
            if self._early_pad is not None:
                self._live &= column != self._early_pad
            self._live &= self.known_columns <= self._last
            self._ids[:, self.known_columns] = column
            self._real[:, self.known_columns] = self._live
            self._positions[:, self.known_columns] = self._length
            self._length += self._live
            self._live = self._live & ~np.isin(column, self._eos)
            self.known_columns += 1
        new, real = self.token_ids[:, first:], self.real[:, first:]
        return [tuple(new[s][real[s]].tolist()) for s in range(self.count)]

    def length(self, sequence: int, columns: int) -> int | None:
        """Real tokens of a sequence in its first ``columns``; None where it has ended.

        Columns that were sampled and are not learned yet count as one token each.
        """
        if not self._live[sequence] or self._last[sequence] < columns:
            return None
        not_learned: int = columns - self.known_columns
        return int(self._length[sequence]) + not_learned

    def end(self, sequence: int, columns: int) -> None:
        """What is sampled for a sequence behind its first ``columns`` will be padding."""
        self._last[sequence] = columns - 1

    def take(self, end: int) -> Rows:
        """Mark columns up to ``end`` (excluded) as processed and return their real tokens."""
        start, self.next_column = self.next_column, end
        sequence, offset = np.nonzero(self._real[:, start:end])
        column = offset + start
        return Rows(
            sequence, column, self._positions[sequence, column], self._ids[sequence, column]
        )

    def _reserve(self, columns: int) -> None:
        capacity = self._ids.shape[1]
        if columns <= capacity:
            return
        more = ((0, 0), (0, max(columns - capacity, capacity, 64)))
        self._ids = np.pad(self._ids, more)
        self._real = np.pad(self._real, more)
        self._positions = np.pad(self._positions, more)
