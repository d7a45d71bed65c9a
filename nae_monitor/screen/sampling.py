"""Choice without scores: every n-th token, and a random reserve."""

from __future__ import annotations

import random
import threading
import time
from typing import Protocol

from nae_monitor.records import Choice, RowBatch, SampleReason
from nae_monitor.screen.budget import Clock, DecodeBudget
from nae_monitor.settings import ScreenSettings


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
        self._random = random.Random(seed)  # noqa: S311 - sampling, not secrets
        self._lock = threading.Lock()

    def choose(self, batch: RowBatch) -> list[Choice]:
        """See :class:`Screen`; each row is chosen at most once."""
        with self._lock:
            rows = list(range(len(batch)))
            self._random.shuffle(rows)
            chosen: list[Choice] = []
            for row in rows:
                reason = self._reason(batch, row)
                if reason is not None:
                    chosen.append(Choice(row, reason))
        return sorted(chosen, key=lambda choice: choice.row)

    def _reason(self, batch: RowBatch, row: int) -> SampleReason | None:
        request_id = batch.requests[batch.request_index[row]].request_id
        if self._random.random() < self._random_rate:
            return SampleReason.RANDOM if self._budget.buy(request_id, random=True) else None
        if batch.positions[row] % self._every_n_tokens == 0:
            return SampleReason.EVERY_N if self._budget.buy(request_id, random=False) else None
        return None
