"""Linear layers with one input, joined into one product, in the layout the CPU reads fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class PackedLinear:
    """``x -> [x W1^T + b1, x W2^T + b2, ...]``; read-only.

    In float32 on the CPU the weight is laid out once for oneDNN, the library that torch is built
    with; torch's own float32 products go to MKL, which packs weights anew in each call and has no
    512-bit kernels for some makes of processor. Where oneDNN is missing, torch's product is used.

    Args:
        layers: ``nn.Linear`` modules, all with a bias or all without.
    """

    def __init__(self, *layers: Any) -> None:
        weights = [layer.weight.detach() for layer in layers]
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self._weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        self.is_packed = _packs(self._weight)
        copied = self.is_packed or len(weights) > 1
        self.extra_bytes = self._weight.numel() * self._weight.element_size() * int(copied)
        if self._bias is not None:
            self.extra_bytes += self._bias.numel() * self._bias.element_size()
        if self.is_packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight)

    def __call__(self, states: Tensor) -> Tensor:
        """[n, in] to [n, sum of out]."""
        if not self.is_packed:
            return functional.linear(states, self._weight, self._bias)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            states.contiguous(), self._weight, self._bias, "none", [], ""
        )
        return result

    def silu(self, states: Tensor) -> Tensor:
        """SiLU of the product, applied while it is still in the processor's registers."""
        if not self.is_packed:
            return functional.silu(self(states))
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            states.contiguous(), self._weight, self._bias, "swish", [], ""
        )
        return result

    def times(self, states: Tensor, other: Tensor) -> Tensor:
        """The product, element by element times ``other`` [n, out]."""
        return self._joined(states, other, "mul") if self.is_packed else self(states) * other

    def plus(self, states: Tensor, other: Tensor) -> Tensor:
        """The product and ``other`` [n, out]."""
        return self._joined(states, other, "add") if self.is_packed else self(states) + other

    def _joined(self, states: Tensor, other: Tensor, how: str) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            states.contiguous(), other, self._weight, self._bias, how
        )
        return result


def _packs(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )
