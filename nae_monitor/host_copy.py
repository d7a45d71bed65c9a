"""Tensors on their way between the device and the CPU, for threads that wait for neither."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class Arrival(Protocol):
    """What tells that a copy is complete; ``torch.cuda.Event`` is one."""

    def query(self) -> bool:
        """Whether it is; never waits."""
        ...

    def synchronize(self) -> None:
        """Block until it is."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class HostCopy:
    """A tensor on the CPU. Of a CUDA device its content is there once :meth:`done` says so."""

    tensor: torch.Tensor
    arrived: Arrival | None = None  # None: already here

    def done(self) -> bool:
        """Whether the content is there; never waits."""
        return self.arrived is None or self.arrived.query()

    def wait(self) -> torch.Tensor:
        """The tensor with its content; blocks until then, so not for the serving thread."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensor


Copier = Callable[[torch.Tensor], HostCopy]


def to_host(tensor: torch.Tensor) -> HostCopy:
    """Start copying a tensor to the CPU; what is written to it afterwards does not show.

    From CUDA it goes through pinned memory on the stream that is current, behind what that stream
    has to do already. Elsewhere it is a plain copy, and of a tensor on the CPU the tensor itself.
    """
    tensor = tensor.detach()
    if not tensor.is_cuda:
        return HostCopy(tensor.to("cpu"))
    with torch.cuda.device(tensor.device):
        # Named, since the host may have set another default.
        on_host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        on_host.copy_(tensor, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
    return HostCopy(on_host, arrived)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on ``device``, without waiting for what that has to do already."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def copy_rows(vectors: torch.Tensor, rows: Sequence[int], dtype: torch.dtype) -> HostCopy:
    """Start copying ``vectors[rows]`` [n, d] to the CPU as ``dtype``; waits for nothing on CUDA.

    ``vectors`` must be complete, or be made on the stream that is current; the caller may let go
    of them at once.
    """
    vectors = vectors.detach()
    places = to_device(torch.tensor(rows, dtype=torch.long, device="cpu"), vectors.device)
    if not vectors.is_cuda:
        return to_host(vectors.index_select(0, places).to(dtype))
    with torch.cuda.device(vectors.device):
        # Another thread than the one that made them may have another stream.
        vectors.record_stream(torch.cuda.current_stream())
        return to_host(vectors.index_select(0, places).to(dtype))
