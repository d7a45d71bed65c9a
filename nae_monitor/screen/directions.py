"""Directions that every row is scored against, and what their scores mean on ordinary traffic.

The file is safetensors: one [d] vector a direction, under its own name, so that a rule's
``activation`` selection can name it too; ``calibration.PHASE`` [m, 2] and ``quantiles.PHASE``
[q] beside them; and where they come from, as JSON in the metadata. Where scores are pooled over
tokens (format 2), ``pooled.PHASE`` [m, 2] tells what pooled scores mean, and the quantiles are
theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.records import Phase
from nae_monitor.screen.pooling import Pool, Scores

FILE_NAME = "screen.safetensors"  # in the reconstructor's directory, where a pair ships one
FORMAT_VERSION, POOLED_FORMAT_VERSION = "1", "2"
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_DIRECTIONS = 4_096
CALIBRATION, QUANTILES, POOLED = "calibration.", "quantiles.", "pooled."
# Shares of ordinary rows, from half of them to one in ten thousand.
SHARES = tuple(float(share) for share in np.geomspace(0.5, 1e-4, 64))
SCALED = (Phase.PROMPT, Phase.COMPLETION)


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
class Directions:
    """Named directions for rows ``hidden_states[layer]`` of one model; build with :func:`of`."""

    names: tuple[str, ...]
    weights: torch.Tensor  # [m, d] float32, each of Euclidean length 1
    scales: Mapping[Phase, PhaseScale]
    base_model: str
    layer: int
    provenance: Mapping[str, Any]
    pool: Pool | None = None  # None: a row is judged by its own scores

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
        unit = torch.nn.functional.normalize(rows.to(torch.float32), dim=-1)
        raw = unit @ self.weights.T
        prompt, completion = self.scales[Phase.PROMPT], self.scales[Phase.COMPLETION]
        at = is_prompt[:, None]
        means = torch.where(at, prompt.means, completion.means)
        return (raw - means) / torch.where(at, prompt.deviations, completion.deviations)

    def rescaled(self, pooled: Scores, is_prompt: NDArray[np.bool_]) -> Scores:
        """Pooled scores [n, m] in deviations of pooled ordinary scores."""
        found = np.empty_like(pooled)
        for phase, wanted in ((Phase.PROMPT, is_prompt), (Phase.COMPLETION, ~is_prompt)):
            table = self.scales[phase].pooled
            if table is None:
                raise ValueError("the directions have no scale of pooled scores")
            means, deviations = table.numpy().T
            found[wanted] = (pooled[wanted] - means) / deviations
        return found

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
        wanted = -np.log(max(share, 1e-12))
        known = -np.log(np.asarray(SHARES))
        return float(np.interp(wanted, known, self.scales[scale_of(phase)].largest.cpu().numpy()))


def read_directions(path: Path) -> Directions:
    """Read a file of directions.

    Raises:
        ConfigurationError: not there, too large, or not such a file.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        with safetensors.safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return _directions(json.loads(told.get("screen", "null")), tensors)
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        why = str(error)[:200] if isinstance(error, ValueError) else type(error).__name__
        mend = "make one with `nae-monitor screen build`"
        raise ConfigurationError(
            [Problem(Mark(str(path)), f"is no file of screening directions: {why}", mend)]
        ) from error


def write_directions(path: Path, directions: Directions) -> None:
    """Write what :func:`read_directions` reads; the same set always gives the same bytes."""
    tensors = {
        name: row.contiguous().clone()
        for name, row in zip(directions.names, directions.weights.cpu(), strict=True)
    }
    for phase, scale in directions.scales.items():
        tensors[CALIBRATION + phase] = torch.stack([scale.means, scale.deviations], 1).contiguous()
        tensors[QUANTILES + phase] = scale.largest
        if scale.pooled is not None:
            tensors[POOLED + phase] = scale.pooled.contiguous()
    told: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "names": directions.names,
        "base_model": directions.base_model,
        "layer": directions.layer,
        "provenance": dict(directions.provenance),
    }
    if directions.pool is not None:
        told |= {"format": POOLED_FORMAT_VERSION, "pool": str(directions.pool)}
    path.write_bytes(save(tensors, {"screen": json.dumps(told, sort_keys=True)}))


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
    unit = torch.nn.functional.normalize(rows.to(torch.float32), dim=-1)
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


def _directions(told: Any, tensors: Mapping[str, torch.Tensor]) -> Directions:
    known = (FORMAT_VERSION, POOLED_FORMAT_VERSION)
    if not isinstance(told, dict) or told.get("format") not in known:
        raise ValueError(f"its metadata is not that of format {' or '.join(known)}")
    pool = None
    if told["format"] == POOLED_FORMAT_VERSION:
        pool = Pool.parse(str(told.get("pool")))
    names, provenance = told.get("names"), told.get("provenance")
    if not isinstance(names, list) or not 1 <= len(names) <= MAX_DIRECTIONS:
        raise ValueError("it names no directions, or too many")
    if not all(isinstance(name, str) and name in tensors for name in names):
        raise ValueError("a direction that it names is not there")
    if not isinstance(told.get("base_model"), str) or not isinstance(told.get("layer"), int):
        raise ValueError("it names no model and layer")
    width = tensors[names[0]].shape
    if len(width) != 1 or any(tensors[name].shape != width for name in names):
        raise ValueError("its directions are not vectors of one width")
    weights = torch.stack([tensors[name].to(torch.float32) for name in names])
    scales = {phase: _scale(tensors, phase, len(names), pool) for phase in SCALED}
    if not torch.allclose(weights.norm(dim=-1), torch.ones(len(names)), atol=1e-4):
        raise ValueError("a direction is not of length 1")
    return Directions(
        tuple(names), weights, scales, told["base_model"], told["layer"],
        provenance if isinstance(provenance, dict) else {}, pool,
    )  # fmt: skip


def _scale(
    tensors: Mapping[str, torch.Tensor], phase: Phase, count: int, pool: Pool | None
) -> PhaseScale:
    table, largest = tensors.get(CALIBRATION + phase), tensors.get(QUANTILES + phase)
    if table is None or table.shape != (count, 2) or not torch.isfinite(table).all():
        raise ValueError(f"its calibration of the {phase} is not [{count}, 2] finite numbers")
    if largest is None or largest.shape != (len(SHARES),) or not torch.isfinite(largest).all():
        raise ValueError(f"its quantiles of the {phase} are not {len(SHARES)} finite numbers")
    if (table[:, 1] <= 0).any() or (largest.diff() < 0).any():
        raise ValueError(f"its scale of the {phase} is out of order")
    means, deviations = table.to(torch.float32).unbind(1)
    pooled = tensors.get(POOLED + phase) if pool is not None else None
    if pool is not None and (
        pooled is None
        or pooled.shape != (count, 2)
        or not torch.isfinite(pooled).all()
        or (pooled[:, 1] <= 0).any()
    ):
        raise ValueError(f"its scale of pooled scores of the {phase} is not [{count}, 2] numbers")
    pooled = None if pooled is None else pooled.to(torch.float32)
    return PhaseScale(means, deviations, largest.to(torch.float32), pooled)
