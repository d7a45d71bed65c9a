"""Whose rows a forward pass computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one request in a pass: ``count`` of them, the buffer's ``offset`` onwards."""

    request_id: str
    start: int  # position of the first, from 0
    count: int  # tokens
    offset: int


@dataclass(frozen=True, eq=False, slots=True)
class Pass:
    """One forward pass."""

    parts: tuple[Part, ...]
    input_ids: torch.Tensor  # [tokens], on the device

    @property
    def tokens(self) -> int:
        """Rows of all requests, padding left out."""
        return self.parts[-1].offset + self.parts[-1].count if self.parts else 0
