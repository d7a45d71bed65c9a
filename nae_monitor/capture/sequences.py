"""Bookkeeping of a batch of growing sequences: which column of which row is a real token."""

from __future__ import annotations

from collections.abc import Sequence
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
        self._lengths: list[int] = real.sum(axis=1).tolist()
        self._live = list(range(self.count))
        self._ended: set[int] = set()
        self._eos = eos_token_ids
        self._early_pad = early_pad
        self._unwritten: list[tuple[Sequence[int], Sequence[int]]] = []  # of the last columns
        self._last: dict[int, int] = {}  # by sequence that was told to end: its last column

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """``[S, known_columns]``."""
        self._write()
        return self._ids[:, : self.known_columns]

    @property
    def real(self) -> NDArray[np.bool_]:
        """``[S, known_columns]``."""
        self._write()
        return self._real[:, : self.known_columns]

    def known_tokens(self, sequence: int) -> tuple[int, ...]:
        """The known real tokens of one sequence, in order."""
        ids = self.token_ids[sequence][self.real[sequence]]
        return tuple(ids[ids >= 0].tolist())

    def learn(self, token_ids: NDArray[np.int64]) -> list[tuple[int, ...]]:
        """Append sampled columns ``[S, T]``; returns the real new tokens of each sequence."""
        new: list[list[int]] = [[] for _ in range(self.count)]
        for column in token_ids.T.tolist():
            for sequence in self.learn_column(column):
                new[sequence].append(column[sequence])
        return [tuple(tokens) for tokens in new]

    def learn_column(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Append one sampled column ``[S]``; the sequences of which it holds a real token.

        In plain Python: there is one such call a step, and arrays of a few numbers cost more.
        """
        column = self.known_columns
        live = self._live
        if self._last or self._early_pad is not None:
            live = [s for s in live if self._goes_on(s, column, token_ids[s])]
        self._unwritten.append((token_ids, live))
        for sequence in live:
            self._lengths[sequence] += 1
        self.known_columns = column + 1
        going = live
        if not self._eos.isdisjoint(token_ids):
            going = [s for s in live if token_ids[s] not in self._eos]
        if len(going) < len(self._live):
            self._ended.update(set(self._live).difference(going))
        self._live = going
        return live

    def _goes_on(self, sequence: int, column: int, token_id: int) -> bool:
        return token_id != self._early_pad and column <= self._last.get(sequence, column)

    def known_length(self, sequence: int) -> int:
        """Known real tokens of a sequence."""
        return self._lengths[sequence]

    def length(self, sequence: int, columns: int) -> int | None:
        """Real tokens of a sequence in its first ``columns``; None where it has ended.

        Columns that were sampled and are not learned yet count as one token each.
        """
        if sequence in self._ended or self._last.get(sequence, columns) < columns:
            return None
        not_learned: int = columns - self.known_columns
        return self._lengths[sequence] + not_learned

    def end(self, sequence: int, columns: int) -> None:
        """What is sampled for a sequence behind its first ``columns`` will be padding."""
        self._last[sequence] = columns - 1

    def take(self, end: int) -> Rows:
        """Mark columns up to ``end`` (excluded) as processed and return their real tokens."""
        self._write()
        start, self.next_column = self.next_column, end
        sequence, offset = np.nonzero(self._real[:, start:end])
        column = offset + start
        positions = np.cumsum(self._real[:, :end], axis=1, dtype=np.int64) - 1
        return Rows(sequence, column, positions[sequence, column], self._ids[sequence, column])

    def _write(self) -> None:
        self._reserve(self.known_columns)
        first = self.known_columns - len(self._unwritten)
        for column, (token_ids, live) in enumerate(self._unwritten, start=first):
            self._ids[:, column] = token_ids
            self._real[live, column] = True
        self._unwritten.clear()

    def _reserve(self, columns: int) -> None:
        capacity = self._ids.shape[1]
        if columns <= capacity:
            return
        more = ((0, 0), (0, max(columns - capacity, capacity, 64)))
        self._ids = np.pad(self._ids, more)
        self._real = np.pad(self._real, more)
