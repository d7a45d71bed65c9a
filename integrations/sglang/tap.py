"""Gets the residual stream before one block of SGLang's models into a buffer.

What a block of SGLang returns is not the residual stream: part of the sum may be owed by other
ranks, and part lies in the batch. Blocks of models that serve as EAGLE-3 targets take a callback,
``capture_output``, and call it with ``hidden_states[K]`` complete, before block K reads it.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch

from nae_monitor.errors import UnsupportedError
from nae_monitor.integrations.engines import buffer

CAPTURE = "capture_output"


class Tap:
    """One tap on one model.

    Args:
        block: block K, counted from 0: the one that reads ``hidden_states[K]``.
        rows: ``[capacity, d]`` in the model's dtype and on its device.

    Raises:
        UnsupportedError: the block has no such callback, or somebody else's wrapper is on it.
    """

    def __init__(self, block: torch.nn.Module, rows: torch.Tensor) -> None:
        name = type(block).__name__
        if "forward" in vars(block):
            raise UnsupportedError(f"the forward of {name} is replaced already")
        if CAPTURE not in inspect.signature(type(block).forward).parameters:
            raise UnsupportedError(f"{name} has no {CAPTURE} (it is no EAGLE-3 target)")
        self.rows = rows
        plain = type(block).forward

        def forward(
            block: Any,
            *args: Any,
            capture_output: Callable[..., None] | None = None,
            **kwargs: Any,
        ) -> Any:
            def capture(value: torch.Tensor, *, owned: bool = False) -> None:
                buffer.tap(value, None, rows)
                if capture_output is not None:
                    capture_output(value, owned=owned)

            return plain(block, *args, capture_output=capture, **kwargs)

        block.forward = types.MethodType(forward, block)

    def check_graphs(self, runner: Any) -> None:
        """After graphs were captured, which runs the model: something must have been written.

        Raises:
            UnsupportedError: the graphs do not reach the tap.
        """
        if runner.decode_cuda_graph_runner is not None and not bool(self.rows.any()):
            raise UnsupportedError("the captured graphs do not reach the tap: no row was written")
