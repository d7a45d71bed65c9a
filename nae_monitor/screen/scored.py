"""Choice by score: every row is scored, and the decodes go to those that stand out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from nae_monitor.host_copy import Copier, HostCopy, to_host
from nae_monitor.records import Choice, Phase, RowBatch, SampleReason
from nae_monitor.screen.anomaly import NAME as ANOMALY
from nae_monitor.screen.budget import Clock
from nae_monitor.screen.directions import Directions, scale_of
from nae_monitor.screen.pooling import ScorePool
from nae_monitor.screen.sampling import Offers, SamplingScreen
from nae_monitor.screen.scorer import Scorer
from nae_monitor.settings import ScreenSettings

ODD_SHARE = 0.1  # of the share that scores buy: what is bought for lying far from ordinary rows
_NONE: NDArray[np.int64] = np.empty(0, dtype=np.int64)
SHOWN_SCORES = 4  # the largest of a chosen row that travel with it


@dataclass(frozen=True, eq=False, slots=True)
class _Look:
    """What the scores of a batch of n rows say."""

    scores: NDArray[np.float32]  # [n, m]
    anomalies: NDArray[np.float32] | None  # [n]
    largest: NDArray[np.float32]  # [n]: what a row stands out by
    preferred: NDArray[np.int64]  # rows over their limits, the highest first


class ScoredScreen(SamplingScreen):
    """Buys the rows whose largest score only ``decode_share`` of ordinary rows reach, the largest
    first, and a random share; where the directions say what ordinary rows are like, also those
    that lie far from them.

    The random reserve has its own budget, so rates that are estimated from it stay unbiased. A
    row that cannot be scored (not finite) comes first: the decoder refuses and counts it.

    On CUDA the scores [n, m] come to the CPU by themselves after :meth:`begin`; ``choose`` and
    ``offers`` wait for those that are not there yet.
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
        copier: Copier = to_host,
    ) -> None:
        super().__init__(
            settings, seed=seed, clock=clock, raised_decodes_per_s=raised_decodes_per_s
        )
        # The reserve is a share of all tokens: as large as it is of the decodes that are bought.
        self._random_rate = settings.random_share * settings.decode_share
        self._copier = copier
        self._directions = directions
        self._names = directions.names
        pool = directions.pool
        self._pool = None if pool is None else ScorePool(pool, len(directions.names))
        share = settings.decode_share
        self._thresholds = {p: directions.threshold(p, share) for p in Phase}
        self._odd = {p: directions.anomaly_threshold(p, ODD_SHARE * share) for p in Phase}
        self._score = Scorer(directions, directions.weights.device)
        self._lowest = min(self._thresholds.values())

    def begin(self, batch: RowBatch) -> HostCopy:
        """See :class:`BeginningScreen`: what :class:`Scorer` makes of the batch."""
        return self._copier(self._scored(batch))

    def choose(self, batch: RowBatch, begun: HostCopy | None = None) -> list[Choice]:
        """See :class:`Screen`; each choice carries the row's largest scores."""
        found = (begun or self.begin(batch)).wait()
        if self._is_ordinary(found, batch.phases):
            return self._ordinary(batch, found)
        look = self._look(batch, found)
        return [self._told(choice, look) for choice in self._choose(batch, look.preferred)]

    def offers(self, batch: RowBatch, begun: HostCopy | None = None) -> Offers:
        """See :class:`PatientScreen`: the random share is bought, rows that stand out are not.

        Of a request no more of them are told than it may still have.
        """
        found = (begun or self.begin(batch)).wait()
        if self._is_ordinary(found, batch.phases):
            return Offers(self._ordinary(batch, found), [])
        look = self._look(batch, found)
        bought = self._choose(batch, _NONE)
        taken = {choice.row for choice in bought}
        waiting: list[tuple[Choice, float]] = []
        left: dict[str, int] = {}
        for row in look.preferred.tolist():
            request_id = batch.requests[batch.request_index[row]].request_id
            if request_id not in left:
                with self._lock:
                    left[request_id] = self._budget.left(request_id)
            if row not in taken and left[request_id] > 0:
                left[request_id] -= 1
                waiting.append((Choice(row, self._reason), float(look.largest[row])))
        return Offers(
            [self._told(choice, look) for choice in bought],
            [(self._told(choice, look), score) for choice, score in waiting],
        )

    def scores(self, batch: RowBatch) -> NDArray[np.float32]:
        """The score of every row along every direction [n, m], on the CPU; not pooled."""
        found: NDArray[np.float32] = self.begin(batch).wait().numpy()
        return found[:, : len(self._names)]

    def _scored(self, batch: RowBatch) -> torch.Tensor:
        """See :class:`Scorer`; on the rows' device."""
        rows = batch.vectors
        if rows.requires_grad:
            rows = rows.detach()
        if self._score.device != rows.device:
            self._score = Scorer(self._directions, rows.device)
        return self._score(rows, batch.phases)

    def _is_ordinary(self, found: torch.Tensor, phases: Sequence[Phase]) -> bool:
        """Whether no row stands out, which most steps can tell by one comparison.

        A row that cannot be scored is not below anything. Not asked where scores are pooled, since
        the pool must see every row, nor where there are anomalies, which take more than that.
        """
        if self._pool is not None or self._directions.anomaly is not None:
            return False
        if not phases:
            return True
        alike = phases.count(phases[0]) == len(phases)
        lowest = self._thresholds[phases[0]] if alike else self._lowest
        return float(found.max()) < lowest

    def _ordinary(self, batch: RowBatch, found: torch.Tensor) -> list[Choice]:
        chosen = self._choose(batch, _NONE)
        if not chosen:
            return []
        look = _Look(found.numpy(), None, np.empty(0, np.float32), _NONE)
        return [self._told(choice, look) for choice in chosen]

    def _look(self, batch: RowBatch, found: torch.Tensor) -> _Look:
        """What the choice goes by."""
        read = _are_read(batch)
        table: NDArray[np.float32] = found.numpy()
        scores, beside = table[:, : len(self._names)], table[:, len(self._names) :]
        anomaly = self._directions.anomaly
        anomalies = None if anomaly is None else anomaly.scores(beside, read)
        if self._pool is not None:
            scores = self._directions.rescaled(self._pool.pooled(batch, scores), read)
        largest = scores.max(axis=1, initial=-np.inf)
        limits = np.array([self._thresholds[phase] for phase in batch.phases])
        if anomalies is not None:
            odd = np.array([self._odd[phase] for phase in batch.phases])
            # By how much a row passes its limit is what the two have in common.
            largest = np.maximum(largest, limits + (anomalies - odd))
        largest = np.where(np.isnan(largest), np.inf, largest)
        over = np.flatnonzero(largest >= limits)
        preferred = over[np.argsort(-largest[over], kind="stable")]
        return _Look(scores, anomalies, largest, preferred)

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

    def _told(self, choice: Choice, look: _Look) -> Choice:
        told = dict(self._largest(look.scores[choice.row]))
        if look.anomalies is not None and np.isfinite(look.anomalies[choice.row]):
            told[ANOMALY] = round(float(look.anomalies[choice.row]), 4)
        return replace(choice, scores=told)

    def _largest(self, row: NDArray[np.float32]) -> Iterator[tuple[str, float]]:
        for index in np.argsort(-row, kind="stable")[:SHOWN_SCORES]:
            if np.isfinite(row[index]):
                yield self._names[index], round(float(row[index]), 4)


def _are_read(batch: RowBatch) -> NDArray[np.bool_]:
    """Whether a row's scale is that of the prompt [n]."""
    return np.array([scale_of(phase) is Phase.PROMPT for phase in batch.phases], dtype=bool)
