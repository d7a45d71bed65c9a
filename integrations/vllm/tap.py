"""Three ways to get the residual stream behind one block into a buffer of fixed address.

``op``: an operation that the block's ``forward`` ends with, and that compilers and CUDA graphs
keep. ``aux``: the model's own auxiliary outputs (vLLM's EAGLE-3 interface). ``hooks``: a forward
hook, for eager engines alone. All write ``hidden_states[layer]``, ``[tokens, d]``, into the first
rows of the same buffer.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Literal

import torch

from nae_monitor.errors import UnsupportedError
from nae_monitor.integrations.engines.buffer import write

Mode = Literal["op", "aux", "hooks"]
MODES: tuple[Mode, ...] = ("op", "aux", "hooks")
BUFFER = "nae_monitor_rows"  # the buffer's name on the watched block


class Tap:
    """One tap on one model; :meth:`install` puts it on, :meth:`remove` takes it off.

    Args:
        model: vLLM's model, loaded.
        block: the one whose output is ``hidden_states[layer]``.
        layer: K.
        rows: ``[capacity, d]`` in the model's dtype and on its device.
    """

    def __init__(
        self, model: torch.nn.Module, block: torch.nn.Module, layer: int, rows: torch.Tensor
    ) -> None:
        self.model = model
        self.block = block
        self.layer = layer
        self.rows = rows
        self._undo: Callable[[], None] = lambda: None

    def install(self, mode: Mode) -> None:
        """Put the tap on.

        Raises:
            UnsupportedError: the model has no such outputs, or somebody else's tap is on it.
        """
        {"op": self._op, "aux": self._aux, "hooks": self._hooks}[mode]()

    def remove(self) -> None:
        """Take the tap off, and leave the model as it was."""
        self._undo()
        self._undo = lambda: None

    def _op(self) -> None:
        if "forward" in vars(self.block):
            raise UnsupportedError(
                f"the forward of {type(self.block).__name__} is replaced already"
            )
        self.block.register_buffer(BUFFER, self.rows, persistent=False)
        plain = type(self.block).forward

        def forward(block: Any, *args: Any, **kwargs: Any) -> Any:
            output = plain(block, *args, **kwargs)
            hidden, residual = output if isinstance(output, tuple) else (output, None)
            torch.ops.nae_monitor.tap(hidden, residual, block.nae_monitor_rows)
            return output

        self.block.forward = types.MethodType(forward, self.block)

        def undo() -> None:
            del self.block.forward
            delattr(self.block, BUFFER)

        self._undo = undo

    def _aux(self) -> None:
        model: Any = self.model
        choose = getattr(model, "set_aux_hidden_state_layers", None)
        if choose is None:
            raise UnsupportedError(f"{type(model).__name__} has no auxiliary outputs (EAGLE-3)")
        choose((self.layer,))
        plain = type(model).forward

        def forward(model: Any, *args: Any, **kwargs: Any) -> Any:
            hidden, aux = plain(model, *args, **kwargs)
            torch.ops.nae_monitor.tap(aux[0], None, self.rows)
            return hidden

        model.forward = types.MethodType(forward, model)

        def undo() -> None:
            del model.forward
            choose(())

        self._undo = undo

    def _hooks(self) -> None:
        def hook(_: Any, __: Any, output: Any) -> None:
            write(output, self.rows)

        self._undo = self.block.register_forward_hook(hook).remove
