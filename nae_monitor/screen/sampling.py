"""Choice without scores: every n-th token, and a random reserve."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from nae_monitor.host_copy import HostCopy
from nae_monitor.records import Choice, RowBatch, SampleReason
from nae_monitor.screen.budget import Clock, DecodeBudget, Purchase, burst_bucket
from nae_monitor.screen.raised import RaisedSampling, Scope
from nae_monitor.settings import ScreenSettings

_ALIVE: weakref.WeakSet[SamplingScreen] = weakref.WeakSet()


class Screen(Protocol):
    """Called with every captured row, in the serving thread unless it is a BeginningScreen.

    ``choose`` must not wait on the device, do I/O or keep the tensor. Rows it does not name are
    forgotten. It may be called from several threads. What it raises is counted by the caller and
    the batch goes undecoded.
    """

    def choose(self, batch: RowBatch) -> list[Choice]:
        """The rows to decode, each with the reason and the scores that it was chosen by."""
        ...


@runtime_checkable
class RaisableScreen(Screen, Protocol):
    """A screen that can look closer at what follows a hit; called from any thread."""

    def raise_sampling(self, scope: Scope, value: str, rate: float, tokens: int) -> bool:
        """See :meth:`SamplingScreen.raise_sampling`."""
        ...


@runtime_checkable
class SellingScreen(Screen, Protocol):
    """A screen whose budget also pays for rows that were not chosen at once, from any thread."""

    def buy(self, request_id: str) -> Purchase:
        """Spend one decode of the budget, not of its random reserve, on a request."""
        ...


@dataclass(frozen=True, slots=True)
class Offers:
    """What a screen makes of a batch where rows may wait for the budget."""

    bought: list[Choice]
    waiting: list[tuple[Choice, float]]  # with the score that each stands out by, highest first


@runtime_checkable
class PatientScreen(SellingScreen, Protocol):
    """A screen that can tell which rows are worth waiting for."""

    def offers(self, batch: RowBatch) -> Offers:
        """As ``choose``, but rows that stand out are left for the caller to buy."""
        ...


@runtime_checkable
class BeginningScreen(PatientScreen, Protocol):
    """A screen that leaves the device to work: rows are chosen once what it began has come.

    Batches of a request are chosen from in the order in which they began, on any thread.
    """

    def begin(self, batch: RowBatch) -> HostCopy:
        """Start scoring a batch, in the serving thread; never waits."""
        ...

    def choose(self, batch: RowBatch, begun: HostCopy | None = None) -> list[Choice]:
        """As of any screen, with what ``begin`` gave for the batch; waits for that."""
        ...

    def offers(self, batch: RowBatch, begun: HostCopy | None = None) -> Offers:
        """Likewise."""
        ...


class SamplingScreen:
    """Every ``every_n_tokens``-th position and a random share, within the budget.

    Where a batch holds more candidates than the budget has decodes, chance decides among them,
    so that a long prompt is not judged by its beginning alone.

    Rows beyond those, where a rule's hit raised the sampling, are paid from a budget of their own
    (``raised_decodes_per_s``; 0: there is none) and carry the reason ``raised``, so that what was
    chosen by chance stays free of bias.
    """

    _reason = SampleReason.EVERY_N  # of rows that were wanted for a reason of their own

    def __init__(
        self,
        settings: ScreenSettings,
        *,
        seed: int = 0,
        clock: Clock = time.monotonic,
        raised_decodes_per_s: float = 0.0,
    ) -> None:
        self._raised = RaisedSampling()
        self._raised_bucket = burst_bucket(raised_decodes_per_s, clock)
        self._every_n_tokens = settings.every_n_tokens
        self._random_rate = settings.random_share / settings.every_n_tokens
        self._budget = DecodeBudget(settings.budget, settings.random_share, clock)
        self._random = np.random.default_rng(seed)
        self._renew()
        _ALIVE.add(self)

    def choose(self, batch: RowBatch) -> list[Choice]:
        """See :class:`Screen`; each row is chosen at most once."""
        positions = np.asarray(batch.positions, dtype=np.int64)
        return self._choose(batch, np.flatnonzero(positions % self._every_n_tokens == 0))

    def _choose(self, batch: RowBatch, preferred: NDArray[np.int64]) -> list[Choice]:
        """Buy what the budget allows of ``preferred`` rows and of some by chance."""
        with self._lock:
            at_random = self._by_chance(len(batch))
            if at_random is None and not (len(preferred) or self._raised):
                return []  # most steps
            if at_random is None:
                at_random = np.zeros(len(batch), dtype=np.bool_)
            candidates = self._candidates(preferred, at_random)
            bought = list(self._buy(batch, candidates, at_random))
            bought += self._buy_raised(batch, {choice.row for choice in bought})
        return sorted(bought, key=lambda choice: choice.row)

    def _by_chance(self, rows: int) -> NDArray[np.bool_] | None:
        """A coin for each row [rows]; None where none fell."""
        if rows == 1:  # the same coin, without an array
            return np.ones(1, dtype=np.bool_) if self._random.random() < self._random_rate else None
        fell: NDArray[np.bool_] = self._random.random(rows) < self._random_rate
        return fell if fell.any() else None

    def _candidates(
        self, preferred: NDArray[np.int64], at_random: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Rows to try to buy, in that order."""
        wanted = at_random.copy()
        wanted[preferred] = True
        candidates = np.flatnonzero(wanted)
        self._random.shuffle(candidates)
        return candidates

    def raise_sampling(self, scope: Scope, value: str, rate: float, tokens: int) -> bool:
        """Decode about ``rate`` of the next ``tokens`` of a request, session or tenant.

        Returns:
            False where no budget was given for that.
        """
        if self._raised_bucket is None:
            return False
        with self._lock:
            self._raised.add(scope, value, rate, tokens)
        return True

    def buy(self, request_id: str) -> Purchase:
        """See :class:`SellingScreen`."""
        with self._lock:
            return self._budget.buy(request_id, random=False)

    def _buy_raised(self, batch: RowBatch, bought: set[int]) -> Iterator[Choice]:
        rates, bucket = self._raised.rates(batch), self._raised_bucket
        if rates is None or bucket is None:
            return
        wanted = np.flatnonzero(self._random.random(len(rates)) < rates)
        self._random.shuffle(wanted)
        for row in wanted.tolist():
            if row in bought:
                continue
            if not bucket.take():
                return
            yield Choice(row, SampleReason.RAISED)

    def _buy(
        self, batch: RowBatch, candidates: NDArray[np.int64], at_random: NDArray[np.bool_]
    ) -> Iterator[Choice]:
        refused: set[tuple[int, bool]] = set()  # for this call: no use asking again
        for row in candidates.tolist():
            index, random = batch.request_index[row], bool(at_random[row])
            if (index, random) in refused:
                continue
            request_id = batch.requests[index].request_id
            if self._budget.buy(request_id, random=random) is Purchase.BOUGHT:
                yield Choice(row, SampleReason.RANDOM if random else self._reason)
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
