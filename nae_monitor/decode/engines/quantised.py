"""Linear layers with 8-bit weights: whole numbers times whole numbers, multiplied by oneDNN.

Weights get one scale an output, inputs one a row as they come. torch's dynamic quantisation takes
one for a whole batch instead: a row with an outlier would coarsen those beside it, and a text would
depend on its neighbours (one scale a token: Yao et al., arXiv 2206.01861).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LARGEST = 127  # of a symmetric 8-bit number
# Inputs go in as numbers from 1 to 255 that mean 128 less: for signed ones oneDNN 3.12 has only its
# reference loops, five thousand times slower.
ZERO = 128
_HALF_UP = torch.tensor(ZERO + 0.5, dtype=torch.float32, device="cpu")
_TINY = 1e-30  # scale of a row of zeros


class Int8Weights:
    """[out, in] float32 weights as whole numbers, laid out for the product."""

    def __init__(self, weight: Tensor) -> None:
        shifted, scale = rounded_rows(weight)
        self.scale = scale.flatten()  # [out]
        self._zero = torch.zeros(len(weight), dtype=torch.int32, device="cpu")
        steps = (shifted.to(torch.int16) - ZERO).to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(steps, None)
        self.extra_bytes = self._packed.nbytes + self.scale.nbytes + self._zero.nbytes

    def product(self, shifted: Tensor) -> Tensor:
        """[n, in] of :func:`rounded_rows` to [n, out] float32, in steps of each row's scale."""
        return _product(shifted, self._packed, self.scale, self._zero)


class Int8Linear:
    """What :class:`~nae_monitor.decode.engines.packed.PackedLinear` gives, of rounded weights.

    A row's result depends on that row alone, to the last bit: sums of whole numbers are exact.

    Args:
        layers: ``nn.Linear`` modules in float32 on the CPU, all with a bias or all without;
            :func:`lacking` says None.
    """

    def __init__(self, *layers: Any) -> None:
        self._weights = Int8Weights(torch.cat([layer.weight.detach() for layer in layers]))
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self.extra_bytes = self._weights.extra_bytes
        if self._bias is not None:
            self.extra_bytes += self._bias.nbytes

    def __call__(self, states: Tensor) -> Tensor:
        """[n, in] float32 to [n, sum of out]."""
        shifted, scale = rounded_rows(states)
        result = self._weights.product(shifted).mul_(scale)
        return result if self._bias is None else result.add_(self._bias)

    def silu(self, states: Tensor) -> Tensor:
        """SiLU of the product."""
        return functional.silu(self(states), inplace=True)

    def times(self, states: Tensor, other: Tensor) -> Tensor:
        """The product, element by element times ``other`` [n, out]."""
        return self(states).mul_(other)

    def plus(self, states: Tensor, other: Tensor) -> Tensor:
        """The product and ``other`` [n, out]."""
        return self(states).add_(other)


def rounded_rows(states: Tensor) -> tuple[Tensor, Tensor]:
    """[n, d] as whole numbers, ``ZERO`` added, and what a step is worth in each row, [n, 1]."""
    scale = torch.linalg.vector_norm(states, torch.inf, dim=1, keepdim=True).div_(LARGEST)
    # Rounded by what the conversion cuts off.
    return torch.addcdiv(_HALF_UP, states, scale.clamp_(min=_TINY)).to(torch.uint8), scale


@cache
def lacking() -> str | None:
    """What this machine lacks for 8-bit products, None where it has it.

    Processors without instructions for them (x86 before VNNI) add in 16 bits and cut off what does
    not fit; that is tried out here.
    """
    extreme = torch.full((32, 64), LARGEST, device="cpu")
    try:
        packed = torch.ops.onednn.qlinear_prepack(extreme.to(torch.int8), None)
        shifted = (extreme + ZERO).to(torch.uint8)
        one, zero = (
            torch.full((32,), value, dtype=dtype, device="cpu")
            for value, dtype in ((1, torch.float32), (0, torch.int32))
        )
        found = [_product(shifted[:rows], packed, one, zero) for rows in (1, 17)]
    except (AttributeError, RuntimeError):
        return "this build of torch has no 8-bit products for the CPU"
    if all(bool((sums == 64 * LARGEST**2).all()) for sums in found):
        return None
    return "this processor cuts off 8-bit products (no VNNI or the like)"


def _product(shifted: Tensor, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Sums of the products, each output times its scale, in float32."""
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        shifted, 1.0, ZERO, weight, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return result
