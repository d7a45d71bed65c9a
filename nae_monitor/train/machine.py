"""The machine under a training: its matrix-product peak, and memory that the CPU keeps."""

from __future__ import annotations

import ctypes
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

PEAK_SECONDS = 1.0
# mallopt(3): names of glibc's malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc keep big buffers instead of returning them to the kernel at every step.

    A training step on the CPU frees and takes back the same activations again and again; each
    time the kernel clears the pages anew, which took a fifth of the time. Returns whether the
    settings were taken: they exist on Linux with glibc only.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Older glibc takes no threshold above half a heap, 32 MiB.
    largest = any(mallopt(_MMAP_THRESHOLD, size) for size in (_LARGEST_INT, 2**30, 2**25))
    return bool(largest and mallopt(_TRIM_THRESHOLD, _LARGEST_INT) and mallopt(_TOP_PAD, 2**28))


@lru_cache(maxsize=4)
def matmul_peak(device: str, dtype: torch.dtype, seconds: float = PEAK_SECONDS) -> float:
    """FLOP/s of a large square matrix product, the best of several within ``seconds``."""
    size = 1024 if device.startswith("cpu") else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    best_s = float("inf")
    with torch.inference_mode():
        _ = a @ b
        ends_s = time.monotonic() + seconds
        while best_s == float("inf") or time.monotonic() < ends_s:
            _synchronise(device)
            began_s = time.monotonic()
            for _i in range(4):
                _ = a @ b
            _synchronise(device)
            best_s = min(best_s, (time.monotonic() - began_s) / 4)
    return 2 * size**3 / best_s


def _synchronise(device: str) -> None:
    if not device.startswith("cpu"):
        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations of one example and one of its tokens, counted from the shapes.

    A product with frozen weights costs 2 FLOP a parameter forward and 2 backward, for the
    gradient of its input alone. Adapters and attention scores are left out: below a tenth here.
    """

    per_example: float
    per_token: float

    def flops(self, examples: int, tokens: int) -> float:
        """Of so many examples with so many tokens in all."""
        return self.per_example * examples + self.per_token * tokens


def verbalizer_work(model: Any, prompt_tokens: int, *, training: bool) -> Work:
    """Every block over prompt and text, the LM head over the text."""
    passes = 4.0 if training else 2.0
    block = passes * _linear_parameters(model.model.layers)
    head = passes * model.get_output_embeddings().weight.numel()
    return Work(block * prompt_tokens, block + head)


def reconstructor_work(model: Any, blocks: int) -> Work:
    """The first ``blocks`` blocks over the text, and the head with its own gradient once."""
    block = 4.0 * _linear_parameters(list(model.model.layers)[:blocks])
    return Work(6.0 * model.config.get_text_config().hidden_size ** 2, block)


def _linear_parameters(layers: Sequence[Any]) -> int:
    return sum(
        m.weight.numel()
        for layer in layers
        for m in layer.modules()
        if isinstance(m, torch.nn.Linear)
    )


@dataclass(slots=True)
class Meter:
    """Adds up what a stage did; evaluations between steps are left out of its time."""

    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, examples: int, tokens: int, seconds: float) -> None:
        """Take one step, or one batch."""
        self.examples += examples
        self.tokens += tokens
        self.seconds += seconds

    def row(self, work: Work | None, peak: float | None) -> dict[str, float]:
        """Rates, and the share of the matrix-product peak where both are known."""
        if not self.examples or not self.seconds:
            return {}
        row = {"examples_per_s": self.examples / self.seconds}
        if self.tokens:
            row["tokens_per_s"] = self.tokens / self.seconds
        if work and peak:
            flops = work.flops(self.examples, self.tokens)
            row["share_of_matmul_peak"] = flops / self.seconds / peak
        return row
