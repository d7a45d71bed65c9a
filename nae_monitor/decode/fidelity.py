"""How well a text reconstructs its activation. None of these figures says the text is true.

With u = h/|h|, v = r/|r|, r = AR(text): cosine = u.v and FVE = 1 - |u - v|^2 / variance, where
variance = mean |u - m|^2 and m is the mean of the u over a reference set, *not* renormalised
(a renormalised m inflates the figure). Source: NLA paper, Transformer Circuits, 2026.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from nae_monitor.decode.contract import FidelityReference
from nae_monitor.decode.vectors import MIN_NORM


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The figures of one activation; None is "unknown", never a guess."""

    cosine: float | None
    fve: float | None
    rank: int | None  # 1 = best among bank_size + 1
    bank_size: int


UNKNOWN = Fidelity(None, None, None, 0)


def measure(
    activation: torch.Tensor, reconstruction: torch.Tensor, reference: FidelityReference | None
) -> Fidelity:
    """Measure one activation against the reconstruction of its text.

    Every row is measured alone and in float64, so that the figures do not depend on the batch.

    Args:
        activation: h, [d].
        reconstruction: AR(text), [d].
        reference: statistics of the pair; None leaves FVE and rank unknown.
    """
    u, v = _unit(activation), _unit(reconstruction)
    if u is None or v is None:
        return UNKNOWN
    cosine = float(u @ v)
    if reference is None:
        return Fidelity(cosine, None, None, 0)
    fve = 1.0 - float((u - v).square().sum()) / reference.variance
    if reference.bank is None:
        return Fidelity(cosine, fve, None, 0)
    rivals = reference.bank.double() @ v
    rank = 1 + int((rivals > cosine).sum())
    return Fidelity(cosine, fve, rank, int(rivals.shape[0]))


def fve(
    activations: torch.Tensor,
    reconstructions: torch.Tensor,
    mean: torch.Tensor | None,
    variance: float | None,
) -> float | None:
    """Fraction of variance explained over a set: 1 - mean|u - v|^2 / variance.

    Args:
        activations: h, [n, d]; only directions count.
        reconstructions: AR(text), [n, d]; only directions count.
        mean: m, [d], the mean of the reference unit vectors as it is; used where ``variance``
            is None, to compute mean|u - m|^2 over these activations.
        variance: mean|u - m|^2 of the reference set.

    Returns:
        None where both are missing, the set is empty, or a row has no direction.
    """
    u, v = unit_rows(activations), unit_rows(reconstructions)
    if u is None or v is None or u.shape[0] == 0:
        return None
    if variance is None:
        if mean is None:
            return None
        variance = float((u - mean.double()).square().sum(dim=1).mean())
    if not variance > 0:
        return None
    return 1.0 - float((u - v).square().sum(dim=1).mean()) / variance


def unit_rows(vectors: torch.Tensor) -> torch.Tensor | None:
    """Rows divided by their norm, float64 [n, d]; None where a row has no direction."""
    rows = vectors.detach().to("cpu", torch.float64)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if not bool((torch.isfinite(norms) & (norms > MIN_NORM)).all()):
        return None
    units: torch.Tensor = rows / norms
    return units


def _unit(vector: torch.Tensor) -> torch.Tensor | None:
    row = vector.detach().to("cpu", torch.float64)
    norm = float(torch.linalg.vector_norm(row))
    if not math.isfinite(norm) or norm <= MIN_NORM:
        return None
    unit: torch.Tensor = row / norm
    return unit
