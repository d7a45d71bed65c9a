"""The buffer of fixed address that a tap writes the residual stream into.

The operation that writes it is one that compilers and CUDA graphs keep.
"""

from __future__ import annotations

from typing import Any

import torch

from nae_monitor.errors import UnsupportedError


@torch.library.custom_op("nae_monitor::tap", mutates_args=("rows",))
def tap(hidden: torch.Tensor, residual: torch.Tensor | None, rows: torch.Tensor) -> None:
    """Write ``hidden + residual`` (``hidden`` where there is none) into the first ``rows``.

    What does not fit is left out, and what has another width is not written: an exception in
    here would end the host's forward pass. :class:`Marker` shows where nothing was written.
    """
    count = min(hidden.shape[0], rows.shape[0])
    if hidden.dim() != 2 or hidden.shape[1] != rows.shape[1]:
        return
    if residual is None:
        rows[:count].copy_(hidden[:count])
    else:
        torch.add(hidden[:count], residual[:count], out=rows[:count])


@tap.register_fake
def _(hidden: torch.Tensor, residual: torch.Tensor | None, rows: torch.Tensor) -> None:
    return None


def blocks_of(model: torch.nn.Module, count: int) -> torch.nn.ModuleList:
    """The model's list of decoder blocks.

    Raises:
        UnsupportedError: there is none of that length.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise UnsupportedError(f"{type(model).__name__} has no list of {count} decoder blocks")


def write(output: Any, rows: torch.Tensor) -> None:
    """Write a block's output, ``(hidden, residual)`` or ``hidden``, into the first ``rows``."""
    hidden, residual = output if isinstance(output, tuple) else (output, None)
    torch.ops.nae_monitor.tap(hidden, residual, rows)


class Marker:
    """Tells whether a pass wrote: the first row is spoilt before it, and good after it."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._first = rows[:1]

    def spoil(self) -> None:
        """Before the pass; never waits for the device."""
        self._first.fill_(float("nan"))

    def blind(self) -> torch.Tensor:
        """After the pass: bool ``[1]`` on the device, True where nothing was written."""
        return self._first[:, 0].isnan()
