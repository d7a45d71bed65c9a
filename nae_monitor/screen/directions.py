"""Directions that every row is scored against, and what their scores mean on ordinary traffic.

The file is safetensors: one [d] vector a direction, under its own name, so that a rule's
``activation`` selection can name it too; ``calibration.PHASE`` [m, 2] and ``quantiles.PHASE``
[q] beside them; and where they come from, as JSON in the metadata. Where scores are pooled over
tokens (format 2), ``pooled.PHASE`` [m, 2] tells what pooled scores mean, and the quantiles are
theirs. ``anomaly.*`` tells what ordinary rows are like (:mod:`nae_monitor.screen.anomaly`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nae_monitor.records import Phase
from nae_monitor.screen.anomaly import Anomaly, fitted
from nae_monitor.screen.pooling import Pool, Scores

# In the reconstructor's directory, where a pair ships them: from the rules' words, and from means
# of labelled rows.
FILE_NAME, CONTRAST_FILE_NAME = "screen.safetensors", "screen-contrast.safetensors"
# Shares of ordinary rows, from half of them to one in ten thousand.
SHARES = tuple(float(share) for share in np.geomspace(0.5, 1e-4, 64))


def scale_of(phase: Phase) -> Phase:
    """The phase whose scale rows of ``phase`` are measured by: all that is read, or is written."""
    return Phase.COMPLETION if phase is Phase.COMPLETION else Phase.PROMPT


@dataclass(frozen=True, eq=False, slots=True)
class PhaseScale:
    """What ordinary rows of one phase score."""

    means: torch.Tensor  # [m]
    deviations: torch.Tensor  # [m], above 0
    largest: torch.Tensor  # [len(SHARES)]: the score that this share of rows reaches, ascending
    pooled: torch.Tensor | None = None  # [m, 2]: means and deviations (above 0) of pooled scores


@dataclass(frozen=True, eq=False, slots=True)
class _Scale:
    """Means and deviations by phase [2, m]: of the completion, and of the prompt."""

    means: Scores
    deviations: Scores

    def __call__(self, values: Scores, is_prompt: NDArray[np.bool_]) -> Scores:
        """Values [n, m] in deviations."""
        # Rows of one phase, as in every decode step, need no table of their own.
        alike = len(is_prompt) > 0 and bool((is_prompt == is_prompt[0]).all())
        at = int(is_prompt[0]) if alike else is_prompt.astype(np.int64)
        found: Scores = np.divide(values - self.means[at], self.deviations[at], dtype=np.float32)
        return found


@dataclass(frozen=True, eq=False)
class Directions:
    """Named directions for rows ``hidden_states[layer]`` of one model; build with :func:`of`."""

    names: tuple[str, ...]
    weights: torch.Tensor  # [m, d] float32, each of Euclidean length 1
    scales: Mapping[Phase, PhaseScale]
    base_model: str
    layer: int
    provenance: Mapping[str, Any]
    pool: Pool | None = None  # None: a row is judged by its own scores
    anomaly: Anomaly | None = None  # None: the file does not say what ordinary rows are like

    @property
    def d_model(self) -> int:
        """Width of the rows."""
        return self.weights.shape[1]

    def to(self, device: torch.device) -> Directions:
        """The same on another device."""
        scales = {
            phase: replace(
                scale, means=scale.means.to(device), deviations=scale.deviations.to(device)
            )
            for phase, scale in self.scales.items()
        }
        return replace(self, weights=self.weights.to(device), scales=scales)

    def scores(self, rows: torch.Tensor, is_prompt: torch.Tensor) -> torch.Tensor:
        """How far each row lies along each direction, in deviations of ordinary rows [n, m].

        Args:
            rows: [n, d], any floating-point type.
            is_prompt: [n] bool: rows whose :func:`scale_of` is that of the prompt.
        """
        unit = unit_rows(rows)
        raw = unit @ self.weights.T
        prompt, completion = self.scales[Phase.PROMPT], self.scales[Phase.COMPLETION]
        at = is_prompt[:, None]
        means = torch.where(at, prompt.means, completion.means)
        return (raw - means) / torch.where(at, prompt.deviations, completion.deviations)

    @cached_property
    def _pooled_scale(self) -> _Scale:
        tables = [self.scales[phase].pooled for phase in (Phase.COMPLETION, Phase.PROMPT)]
        known = [table.numpy() for table in tables if table is not None]
        if len(known) < len(tables):
            raise ValueError("the directions have no scale of pooled scores")
        return _Scale(*(np.stack([table[:, column] for table in known]) for column in (0, 1)))

    def anomaly_threshold(self, phase: Phase, share: float) -> float:
        """The anomaly that about ``share`` of ordinary rows reach; infinite where unknown."""
        if self.anomaly is None:
            return float("inf")
        return _at(share, self.anomaly.scales[scale_of(phase)].largest)

    def rescaled(self, pooled: Scores, is_prompt: NDArray[np.bool_]) -> Scores:
        """Pooled scores [n, m] in deviations of pooled ordinary scores."""
        return self._pooled_scale(pooled, is_prompt)

    def pooled_scores(
        self, rows: torch.Tensor, is_prompt: torch.Tensor, runs: NDArray[np.int64]
    ) -> torch.Tensor:
        """As :meth:`scores`, pooled where the directions say so.

        Args:
            rows: [n, d].
            is_prompt: [n] bool.
            runs: [n]: rows of one number stand together and follow one another.
        """
        found = self.scores(rows, is_prompt)
        if self.pool is None:
            return found
        pooled = _pooled(self.pool, found.cpu().numpy(), runs)
        return torch.from_numpy(self.rescaled(pooled, is_prompt.cpu().numpy()))

    def threshold(self, phase: Phase, share: float) -> float:
        """The largest score that about ``share`` of ordinary rows of a phase reach or pass.

        Between the measured shares by interpolation in their logarithm; beyond them the last.
        """
        return _at(share, self.scales[scale_of(phase)].largest.cpu().numpy())


def _at(share: float, largest: Scores) -> float:
    """The quantile of a share, from those of ``SHARES``."""
    return float(np.interp(-np.log(max(share, 1e-12)), -np.log(np.asarray(SHARES)), largest))


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows [n, d] at Euclidean length 1, in float32; rows of zeros stay so."""
    rows = rows.to(torch.float32)
    lengths: torch.Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / lengths.clamp_min_(1e-12)


def calibrated(
    names: Sequence[str],
    weights: torch.Tensor,
    rows: torch.Tensor,
    is_prompt: torch.Tensor,
    *,
    base_model: str,
    layer: int,
    provenance: Mapping[str, Any],
    pool: Pool | None = None,
    runs: NDArray[np.int64] | None = None,
) -> Directions:
    """Directions [m, d] with the scales of ordinary rows [n, d], each phase for itself.

    Where scores are pooled, ``runs`` [n] tells which rows follow one another; see
    :meth:`Directions.pooled_scores`.

    Raises:
        ValueError: a phase has too few rows to tell its smallest share by.
    """
    weights = torch.nn.functional.normalize(weights.to(torch.float32), dim=-1)
    unit = unit_rows(rows)
    scales = {}
    for phase, wanted in ((Phase.PROMPT, is_prompt), (Phase.COMPLETION, ~is_prompt)):
        raw = unit[wanted] @ weights.T
        if len(raw) < 1 / SHARES[0]:
            raise ValueError(f"no ordinary rows of the {phase}")
        means, deviations = raw.mean(0), raw.std(0).clamp_min(1e-9)
        best = ((raw - means) / deviations).amax(1)
        scales[phase] = PhaseScale(means, deviations, torch.quantile(best, _CUTS))
    found = Directions(tuple(names), weights, scales, base_model, layer, provenance)
    if pool is None:
        return found
    if runs is None:
        raise ValueError("pooled scores cannot be calibrated on rows without their order")
    scores = _pooled(pool, found.scores(rows, is_prompt).numpy(), runs)
    return replace(found, pool=pool, scales=_pooled_scales(scales, scores, is_prompt.numpy()))


def with_anomaly(
    directions: Directions,
    fit: torch.Tensor,
    scale: torch.Tensor,
    is_prompt: torch.Tensor,
    rank: int,
) -> Directions:
    """The same, with what ordinary unit rows are like; see :func:`anomaly.fitted`.

    Raises:
        ValueError: too few rows.
    """
    found = fitted(fit, scale, is_prompt, rank=rank, cuts=_CUTS)
    return replace(directions, anomaly=found)


_CUTS = torch.tensor([1 - share for share in SHARES], dtype=torch.float32)


def _pooled_scales(
    scales: Mapping[Phase, PhaseScale], scores: Scores, is_prompt: NDArray[np.bool_]
) -> dict[Phase, PhaseScale]:
    found = {}
    for phase, wanted in ((Phase.PROMPT, is_prompt), (Phase.COMPLETION, ~is_prompt)):
        mine = torch.from_numpy(scores[wanted])
        means, deviations = mine.mean(0), mine.std(0).clamp_min(1e-9)
        best = ((mine - means) / deviations).amax(1)
        table = torch.stack([means, deviations], 1)
        found[phase] = replace(scales[phase], largest=torch.quantile(best, _CUTS), pooled=table)
    return found


def _pooled(pool: Pool, scores: Scores, runs: NDArray[np.int64]) -> Scores:
    """Scores [n, m] pooled within each run."""
    parts = np.split(scores, np.flatnonzero(np.diff(runs) != 0) + 1)
    return np.concatenate(
        [pool.run(part, pool.start(part.shape[1]))[0] for part in parts if len(part)]
    )
