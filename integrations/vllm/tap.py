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

Mode = Literal["op", "aux", "hooks"]
MODES: tuple[Mode, ...] = ("op", "aux", "hooks")
BUFFER = "nae_monitor_rows"  # the buffer's name on the watched block


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
