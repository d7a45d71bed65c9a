"""Files of directions: safetensors, as :mod:`nae_monitor.screen.directions` describes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save

from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.records import Phase
from nae_monitor.screen.anomaly import from_tensors, to_tensors
from nae_monitor.screen.directions import SHARES, Directions, PhaseScale
from nae_monitor.screen.pooling import Pool

FORMAT_VERSION, POOLED_FORMAT_VERSION = "1", "2"
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_DIRECTIONS = 4_096
CALIBRATION, QUANTILES, POOLED = "calibration.", "quantiles.", "pooled."
SCALED = (Phase.PROMPT, Phase.COMPLETION)


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
    if directions.anomaly is not None:
        tensors |= to_tensors(directions.anomaly)
    if directions.pool is not None:
        told |= {"format": POOLED_FORMAT_VERSION, "pool": str(directions.pool)}
    path.write_bytes(save(tensors, {"screen": json.dumps(told, sort_keys=True)}))


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
        from_tensors(tensors, width[0], len(SHARES)),
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
