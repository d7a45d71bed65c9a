"""Chosen rows from the device to the CPU, without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, eq=False, slots=True)
class HostRows:
    """Rows [n, d] on the CPU. On a GPU their content is there only after :meth:`wait`."""

    vectors: torch.Tensor
    arrived: Any = None  # torch.cuda.Event; None: already here

    def wait(self) -> None:
        """Block until the copy is complete; not for the serving thread."""
        if self.arrived is not None:
            self.arrived.synchronize()


def copy_rows(vectors: torch.Tensor, rows: Sequence[int], dtype: torch.dtype) -> HostRows:
    """Start copying ``vectors[rows]`` [n, d] to the CPU as ``dtype``.

    On CUDA both the row numbers and the result go through pinned memory on the stream that is
    current, so the calling thread waits for nothing. Elsewhere this is a plain copy.
    """
    places = torch.tensor(rows, dtype=torch.long)
    vectors = vectors.detach()
    if not vectors.is_cuda:
        chosen = vectors.index_select(0, places.to(vectors.device))
        return HostRows(chosen.to("cpu", dtype))
    with torch.cuda.device(vectors.device):
        places = places.pin_memory().to(vectors.device, non_blocking=True)
        chosen = vectors.index_select(0, places).to(dtype)
        on_host = torch.empty(chosen.shape, dtype=dtype, pin_memory=True)
        on_host.copy_(chosen, non_blocking=True)
        arrived: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
    return HostRows(on_host, arrived)
