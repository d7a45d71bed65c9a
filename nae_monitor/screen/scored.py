"""Choice by score: every row is scored, and the decodes go to those that stand out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from nae_monitor.records import Choice, Phase, RowBatch, SampleReason
from nae_monitor.screen.budget import Clock
from nae_monitor.screen.directions import Directions, scale_of
from nae_monitor.screen.pooling import ScorePool
from nae_monitor.screen.sampling import Offers, SamplingScreen
from nae_monitor.settings import ScreenSettings

SHOWN_SCORES = 4  # the largest of a chosen row that travel with it


class ScoredScreen(SamplingScreen):
    """Buys the rows whose largest score only ``decode_share`` of ordinary rows reach, the largest
    first, and a random share.

    The random reserve has its own budget, so rates that are estimated from it stay unbiased. A
    row that cannot be scored (not finite) comes first: the decoder refuses and counts it.

    On a device other than the CPU the scores [n, m] are waited for, once a forward pass.
    """

    _reason = SampleReason.SCORE

    def __init__(
        self,
        settings: ScreenSettings,
        directions: Directions,
        *,
        seed: int = 0,
        clock: Clock = time.monotonic,
        raised_decodes_per_s: float = 0.0,
    ) -> None:
        super().__init__(
            settings, seed=seed, clock=clock, raised_decodes_per_s=raised_decodes_per_s
        )
        # The reserve is a share of all tokens: as large as it is of the decodes that are bought.
        self._random_rate = settings.random_share * settings.decode_share
        self._directions = directions
        pool = directions.pool
        self._pool = None if pool is None else ScorePool(pool, len(directions.names))
        self._thresholds = {p: directions.threshold(p, settings.decode_share) for p in Phase}

    def choose(self, batch: RowBatch) -> list[Choice]:
        """See :class:`Screen`; each choice carries the row's largest scores."""
        scores = self._pooled(batch, self.scores(batch))
        preferred, _ = self._standing_out(batch, scores)
        return [self._told(choice, scores) for choice in self._choose(batch, preferred)]

    def offers(self, batch: RowBatch) -> Offers:
        """See :class:`PatientScreen`: the random share is bought, rows that stand out are not.

        Of a request no more of them are told than it may still have.
        """
        scores = self._pooled(batch, self.scores(batch))
        preferred, largest = self._standing_out(batch, scores)
        bought = self._choose(batch, preferred[:0])
        taken = {choice.row for choice in bought}
        waiting: list[tuple[Choice, float]] = []
        left: dict[str, int] = {}
        for row in preferred.tolist():
            request_id = batch.requests[batch.request_index[row]].request_id
            if request_id not in left:
                with self._lock:
                    left[request_id] = self._budget.left(request_id)
            if row not in taken and left[request_id] > 0:
                left[request_id] -= 1
                waiting.append((Choice(row, self._reason), float(largest[row])))
        return Offers(
            [self._told(choice, scores) for choice in bought],
            [(self._told(choice, scores), score) for choice, score in waiting],
        )

    def _standing_out(
        self, batch: RowBatch, scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows over their thresholds, the highest first; the largest score of every row [n]."""
        largest = np.nan_to_num(scores.max(axis=1, initial=-np.inf), nan=np.inf)
        limits = np.array([self._thresholds[phase] for phase in batch.phases])
        over = np.flatnonzero(largest >= limits)
        return over[np.argsort(-largest[over], kind="stable")], largest

    def scores(self, batch: RowBatch) -> NDArray[np.float32]:
        """The score of every row along every direction [n, m], on the CPU; not pooled."""
        rows = batch.vectors
        if self._directions.weights.device != rows.device:
            self._directions = self._directions.to(rows.device)
        read = [scale_of(phase) is Phase.PROMPT for phase in batch.phases]
        prompt = torch.tensor(read, dtype=torch.bool, device=rows.device)
        with torch.inference_mode():
            found: NDArray[np.float32] = self._directions.scores(rows, prompt).cpu().numpy()
        return found

    def _pooled(self, batch: RowBatch, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._pool is None:
            return scores
        read = np.array([scale_of(phase) is Phase.PROMPT for phase in batch.phases], dtype=bool)
        return self._directions.rescaled(self._pool.pooled(batch, scores), read)

    def _renew(self) -> None:
        super()._renew()
        if (pool := getattr(self, "_pool", None)) is not None:  # not there yet while it is made
            pool.renew()

    def _candidates(
        self, preferred: NDArray[np.int64], at_random: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        by_chance = np.flatnonzero(at_random)
        self._random.shuffle(by_chance)
        return np.concatenate([by_chance, preferred[~at_random[preferred]]])

    def _told(self, choice: Choice, scores: NDArray[np.float32]) -> Choice:
        return replace(choice, scores=dict(self._largest(scores[choice.row])))

    def _largest(self, row: NDArray[np.float32]) -> Iterator[tuple[str, float]]:
        for index in np.argsort(-row, kind="stable")[:SHOWN_SCORES]:
            if np.isfinite(row[index]):
                yield self._directions.names[index], round(float(row[index]), 4)
