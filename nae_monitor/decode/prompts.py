"""The verbalizer's input: fixed prompt embeddings with one row overwritten by the activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nae_monitor.decode.contract import AvCheckpoint
from nae_monitor.decode.vectors import check_vectors

OPEN_TAG = "<explanation>"
CLOSE_TAG = "</explanation>"


@dataclass(frozen=True, eq=False, slots=True)
class PromptBatch:
    """Finished prompts of equal length; the first ``shared_tokens`` rows are the same in all."""

    embeddings: torch.Tensor  # [n, T, d] float32, as the first block sees them
    shared_tokens: int

    def __len__(self) -> int:
        return int(self.embeddings.shape[0])


@dataclass(frozen=True, slots=True)
class Sampling:
    """How texts are generated. ``seeds`` has one entry a prompt where temperature is above 0."""

    max_new_tokens: int
    temperature: float = 0.0  # 0: greedy
    seeds: tuple[int, ...] = ()

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class Generation:
    """What an engine wrote for one prompt."""

    text: str  # raw, tags included, end-of-sequence token removed
    tokens: int  # generated, end-of-sequence token included


class PromptBuilder:
    """Builds prompt embeddings of one verbalizer.

    Args:
        checkpoint: the verbalizer.
        rows: [T, d] embeddings of its prompt ids, *after* any scaling the model applies to
            token embeddings (Gemma: sqrt(d)): the vector replaces a row of exactly this scale.
    """

    def __init__(self, checkpoint: AvCheckpoint, rows: torch.Tensor) -> None:
        self._contract = checkpoint.contract
        self._marker = checkpoint.marker_index
        self._rows = rows.detach().to("cpu", torch.float32)

    def build(self, vectors: torch.Tensor) -> PromptBatch:
        """Inject each vector, rescaled to ``injection_scale``, into a copy of the prompt.

        Args:
            vectors: [n, d], any floating dtype and device.

        Raises:
            VectorError: a row has the wrong width, is zero or is not finite.
        """
        check_vectors(vectors, self._contract.d_model)
        rows = vectors.detach().to("cpu", torch.float32)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        prompts = self._rows.expand(rows.shape[0], -1, -1).clone()
        prompts[:, self._marker] = rows / norms * self._contract.injection_scale
        return PromptBatch(prompts, self._marker)


def parse_explanation(raw: str) -> tuple[str, bool]:
    """The text between the tags and whether the closing tag came; a missing tag is tolerated."""
    body, closing, _ = raw.partition(CLOSE_TAG)
    _, opening, inner = body.partition(OPEN_TAG)
    return (inner if opening else body).strip(), bool(closing)
