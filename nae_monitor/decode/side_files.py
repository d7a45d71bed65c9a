"""The reconstructor's side files: linear head and fidelity statistics, bounded and checked."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from nae_monitor.decode.contract import MIN_BANK_VECTORS, FidelityReference
from nae_monitor.errors import Mark, Problem

VALUE_HEAD = "value_head.safetensors"
FIDELITY = "fidelity.safetensors"
HEAD_KEYS = ("weight", "value_head.weight")
MAX_BANK_VECTORS = 65_536
_RENORMALISED = 1.0 - 1e-5  # a mean of distinct unit vectors is shorter than this


def read_head(directory: Path, d_model: int, problems: list[Problem]) -> torch.Tensor | None:
    """``Linear(d, d, bias=False)`` of the reconstructor, [d, d] float32."""
    path = directory / VALUE_HEAD
    if not path.is_file():
        mend = "a reconstructor ships its head beside its trunk"
        problems.append(Problem(Mark(str(path)), "is missing", mend, "head-missing"))
        return None
    tensors = _read(path, dict.fromkeys(HEAD_KEYS, 2), d_model * d_model, problems, "head-file")
    if tensors is None:
        return None
    head = next((tensors[key] for key in HEAD_KEYS if key in tensors), None)
    if head is None:
        _note(problems, path, "lacks the key weight", "head-key")
    elif tuple(head.shape) != (d_model, d_model):
        shape = tuple(head.shape)
        _note(problems, path, f"weight is {shape}, not {(d_model, d_model)}", "head-shape")
    elif not bool(torch.isfinite(head).all()):
        _note(problems, path, "weight holds NaN or infinity", "head-finite")
    else:
        return head
    return None


def read_reference(
    directory: Path, d_model: int, problems: list[Problem]
) -> FidelityReference | None:
    """``mean``, ``variance`` and ``bank``; None where the file is absent (FVE is unknown)."""
    path = directory / FIDELITY
    if not path.is_file():
        return None
    before = len(problems)
    ranks = {"mean": 1, "variance": 1, "bank": 2}
    tensors = _read(path, ranks, MAX_BANK_VECTORS * d_model, problems, "fidelity-file")
    if tensors is None:
        return None
    for key in ("mean", "variance"):
        if key not in tensors:
            _note(problems, path, f"lacks the key {key}", f"fidelity-{key}-missing")
    mean, variance, bank = (tensors.get(key) for key in ("mean", "variance", "bank"))
    if mean is not None:
        _check_mean(path, mean, d_model, problems)
    if variance is not None and not _is_positive_scalar(variance):
        _note(problems, path, "variance must be one number above 0", "fidelity-variance")
    if bank is not None:
        _check_bank(path, bank, d_model, problems)
    if len(problems) > before or mean is None or variance is None:
        return None
    return FidelityReference(mean, float(variance.reshape(())), bank)


def _check_mean(path: Path, mean: torch.Tensor, d_model: int, problems: list[Problem]) -> None:
    norm = float(torch.linalg.vector_norm(mean))
    if tuple(mean.shape) != (d_model,) or norm != norm:
        _note(problems, path, f"mean must be [{d_model}] and finite", "fidelity-mean")
    elif norm >= _RENORMALISED:
        text = "mean has norm 1 or more: it must not be renormalised, which inflates FVE"
        _note(problems, path, text, "fidelity-mean-renormalised")


def _check_bank(path: Path, bank: torch.Tensor, d_model: int, problems: list[Problem]) -> None:
    if bank.shape[0] < MIN_BANK_VECTORS or bank.shape[1] != d_model:
        text = f"bank is {tuple(bank.shape)}, not [{MIN_BANK_VECTORS} or more, {d_model}]"
        _note(problems, path, text, "fidelity-bank-shape")
        return
    norms = torch.linalg.vector_norm(bank, dim=1)
    if not bool(((norms - 1).abs() < 1e-2).all()):  # float16 rounding stays well below
        _note(problems, path, "bank holds rows that are not unit vectors", "fidelity-bank-norm")


def _is_positive_scalar(value: torch.Tensor) -> bool:
    return value.numel() == 1 and bool(torch.isfinite(value).all()) and float(value.sum()) > 0


def _read(
    path: Path, ranks: dict[str, int], max_elements: int, problems: list[Problem], code: str
) -> dict[str, torch.Tensor] | None:
    """The known tensors of a file as float32, or None where it cannot be read."""
    found: dict[str, torch.Tensor] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
            for key in names:
                shape = file.get_slice(key).get_shape()
                if key in ranks and len(shape) == ranks[key]:
                    if torch.Size(shape).numel() > max_elements:
                        _note(problems, path, f"{key} is too large", f"{code}-size")
                        return None
                    found[key] = file.get_tensor(key).float()
    except (OSError, SafetensorError):
        _note(problems, path, "is truncated or no safetensors file", code)
        return None
    return found


def _note(problems: list[Problem], path: Path, text: str, code: str) -> None:
    problems.append(Problem(Mark(str(path)), text, "", code))
