"""Choice without scores: every n-th token, and a random reserve."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nae_monitor.records import Choice, RowBatch, SampleReason
from nae_monitor.screen.budget import Clock, DecodeBudget
from nae_monitor.settings import ScreenSettings

_ALIVE: weakref.WeakSet[SamplingScreen] = weakref.WeakSet()


class Screen(Protocol):
    """Called in the serving thread with every captured row.

    ``choose`` must not wait on the device, do I/O or keep the tensor. Rows it does not name are
    forgotten. It may be called from several threads. What it raises is counted by the caller and
    the batch goes undecoded.
    """

    def choose(self, batch: RowBatch) -> list[Choice]:
        """The rows to decode, each with the reason and the scores that it was chosen by."""
        ...


class SamplingScreen:
    """Every ``every_n_tokens``-th position and a random share, within the budget.

    Where a batch holds more candidates than the budget has decodes, chance decides among them,
    so that a long prompt is not judged by its beginning alone.
    """

    def __init__(
        self, settings: ScreenSettings, *, seed: int = 0, clock: Clock = time.monotonic
    ) -> None:
        self._every_n_tokens = settings.every_n_tokens
        self._random_rate = settings.random_share / settings.every_n_tokens
        self._budget = DecodeBudget(settings.budget, settings.random_share, clock)
        self._random = np.random.default_rng(seed)
        self._renew()
        _ALIVE.add(self)

    def choose(self, batch: RowBatch) -> list[Choice]:
        """See :class:`Screen`; each row is chosen at most once."""
        positions = np.asarray(batch.positions, dtype=np.int64)
        with self._lock:
            at_random = self._random.random(len(positions)) < self._random_rate
            candidates = np.flatnonzero(at_random | (positions % self._every_n_tokens == 0))
            self._random.shuffle(candidates)
            return sorted(self._buy(batch, candidates, at_random), key=lambda choice: choice.row)

    def _buy(
        self, batch: RowBatch, candidates: NDArray[np.int64], at_random: NDArray[np.bool_]
    ) -> Iterator[Choice]:
        refused: set[tuple[int, bool]] = set()  # for this call: no use asking again
        for row in candidates.tolist():
            index, random = batch.request_index[row], bool(at_random[row])
            if (index, random) in refused:
                continue
            if self._budget.buy(batch.requests[index].request_id, random=random):
                yield Choice(row, SampleReason.RANDOM if random else SampleReason.EVERY_N)
            else:
                refused.add((index, random))

    def _renew(self) -> None:
        self._lock = threading.Lock()


def _renew_in_child() -> None:
    """A thread that does not exist in the forked child may have held a lock."""
    for screen in list(_ALIVE):
        screen._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
