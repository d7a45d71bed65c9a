"""Which activations may be decoded: the right width, finite, and not zero. Norms in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nae_monitor.errors import VectorError

MIN_NORM = 1e-12  # below this a direction is rounding noise
_SHOWN_ROWS = 8


@dataclass(frozen=True, eq=False, slots=True)
class VectorScreen:
    """Which rows are fit to decode, and why the others are not."""

    good: torch.Tensor  # [n] bool, CPU
    reasons: tuple[str | None, ...]  # per row: None, "width", "non_finite" or "zero"


def screen_vectors(vectors: torch.Tensor, d_model: int) -> VectorScreen:
    """Judge each row without raising; for the run-time path, which drops and counts.

    Args:
        vectors: [n, d], any floating dtype and device.
        d_model: the width the NLA was trained on.
    """
    rows = vectors.shape[0] if vectors.dim() else 0
    if vectors.dim() != 2 or vectors.shape[1] != d_model or not vectors.is_floating_point():
        return VectorScreen(torch.zeros(rows, dtype=torch.bool), ("width",) * rows)
    norms = torch.linalg.vector_norm(vectors.detach().to("cpu", torch.float32), dim=1)
    finite = torch.isfinite(norms)  # NaN, infinity, and float32 overflow of the norm
    good = finite & (norms > MIN_NORM)
    reasons = tuple(
        None if g else ("zero" if f else "non_finite")
        for g, f in zip(good.tolist(), finite.tolist(), strict=True)
    )
    return VectorScreen(good, reasons)


def check_vectors(vectors: torch.Tensor, d_model: int) -> None:
    """Refuse a batch that holds any row unfit to decode.

    Raises:
        VectorError: naming the rows (from 0) and the reason.
    """
    if vectors.dim() != 2 or vectors.shape[1] != d_model:
        shape = tuple(vectors.shape)
        raise VectorError(f"activations have shape {shape}; this NLA reads [n, {d_model}]")
    if not vectors.is_floating_point():
        raise VectorError(f"activations are {vectors.dtype}, not floating point")
    screen = screen_vectors(vectors, d_model)
    faults = []
    for reason, text in (("non_finite", "NaN or infinite"), ("zero", "zero")):
        rows = [i for i, r in enumerate(screen.reasons) if r == reason]
        if rows:
            shown = ", ".join(map(str, rows[:_SHOWN_ROWS]))
            more = f" and {len(rows) - _SHOWN_ROWS} more" if len(rows) > _SHOWN_ROWS else ""
            faults.append(f"{text}: row {shown}{more}")
    if faults:
        raise VectorError("activations that cannot be decoded: " + "; ".join(faults))
