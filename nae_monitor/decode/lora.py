"""LoRA adapters as peft writes them, merged into plain weights; peft itself is not needed.

Source: Hu et al., "LoRA" (arXiv 2106.09685): W' = W + (alpha / r) B A, here in float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from nae_monitor.errors import Mark, Problem

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1024 * 1024
PREFIX = "base_model.model."
A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"

# Variants whose merge is another formula: named, so that none is silently dropped.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "use_rslora": (None, False),
    "fan_in_fan_out": (None, False),
    "lora_bias": (None, False),
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "alpha_pattern": (None, {}),
    "rank_pattern": (None, {}),
    "trainable_token_indices": (None, []),
    "layer_replication": (None, []),
}


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The two figures a merge needs."""

    rank: int
    alpha: float

    @property
    def scaling(self) -> float:
        """The factor on B A."""
        return self.alpha / self.rank


def read_lora_config(path: Path, problems: list[Problem]) -> LoraConfig | None:
    """Read ``adapter_config.json``; each unsupported option is a problem of its own."""
    values = _read_json(path, problems)
    if values is None:
        return None
    before = len(problems)

    def note(key: str, message: str, code: str) -> None:
        problems.append(Problem(Mark(str(path)), f"{key} {message}", "", code))

    if values.get("peft_type", "LORA") != "LORA":
        note("peft_type", "is not LORA", "lora-type")
    for key, allowed in _UNSUPPORTED.items():
        if values.get(key) not in allowed:
            note(key, "is not supported; merge the adapter first", f"lora-option:{key}")
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        note("r", "must be a whole number of at least 1", "lora-r")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0:
        note("lora_alpha", "must be a number above 0", "lora-alpha")
    if len(problems) > before:
        return None
    return LoraConfig(rank=int(str(rank)), alpha=float(str(alpha)))


def check_lora(
    path: Path, rank: int, shapes: Mapping[str, tuple[int, ...]], problems: list[Problem]
) -> None:
    """Check every adapter tensor against the base weights it will be merged into.

    Args:
        path: the adapter's safetensors file.
        rank: ``r`` of its configuration.
        shapes: base parameter name to shape.
        problems: where problems are noted, the first few of each kind.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
            found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        problems.append(
            Problem(Mark(str(path)), f"cannot be read: {type(error).__name__}", "", "lora-file")
        )
        return
    targets = {_target(key, shapes): key for key in found if key.endswith((A_SUFFIX, B_SUFFIX))}
    noted = [_check_tensor(key, shape, found, rank, shapes) for key, shape in sorted(found.items())]
    faults = [fault for fault in noted if fault]
    if not targets:
        faults.insert(0, ("lora-empty", "holds no LoRA tensors"))
    problems.extend(Problem(Mark(str(path)), text, "", code) for code, text in faults[:8])


def _check_tensor(
    key: str,
    shape: tuple[int, ...],
    found: Mapping[str, tuple[int, ...]],
    rank: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[str, str] | None:
    if not key.endswith((A_SUFFIX, B_SUFFIX)):
        return "lora-key", f"{key} is no LoRA tensor of a linear layer"
    is_a = key.endswith(A_SUFFIX)
    stem = key.removesuffix(A_SUFFIX if is_a else B_SUFFIX)
    if stem + (B_SUFFIX if is_a else A_SUFFIX) not in found:
        return "lora-pair", f"{key} lacks its other half"
    target = _target(key, shapes)
    if target is None:
        return "lora-target", f"{key} has no weight in the base model"
    out_features, in_features = shapes[target]
    wanted = (rank, in_features) if is_a else (out_features, rank)
    if shape != wanted:
        return "lora-shape", f"{key} has shape {shape}, expected {wanted}"
    return None


def merge_lora(model: torch.nn.Module, path: Path, config: LoraConfig) -> None:
    """Add the adapter to the model's weights in place, computed in float32."""
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items() if p.dim() == 2}
    with torch.no_grad(), safe_open(str(path), framework="pt") as file:
        names = [key for key in list(file.keys()) if key.endswith(A_SUFFIX)]
        for key in names:
            weight = parameters[str(_target(key, shapes))]
            down = file.get_tensor(key).to(weight.device, torch.float32)
            up = file.get_tensor(key.removesuffix(A_SUFFIX) + B_SUFFIX)
            up = up.to(weight.device, torch.float32)
            weight.copy_(weight.float() + config.scaling * (up @ down))


def _target(key: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The parameter a LoRA tensor belongs to; adapters of the bare trunk lack ``model.``."""
    for suffix in (A_SUFFIX, B_SUFFIX):
        if key.endswith(suffix):
            name = key.removesuffix(suffix).removeprefix(PREFIX) + ".weight"
            return next((n for n in (name, f"model.{name}") if len(shapes.get(n, ())) == 2), None)
    return None


def _read_json(path: Path, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("too large")
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return values
    except (OSError, ValueError, RecursionError):
        pass
    mend = "the adapter form needs peft's JSON configuration"
    problems.append(Problem(Mark(str(path)), "is missing or no JSON object", mend, "lora-config"))
    return None
