"""One process, or several that ``accelerate launch`` started: each takes its share of a batch.

With N processes a step sees N times the recipe's batch, as one process would with a batch N
times as large. Gradients are averaged by torch's DistributedDataParallel. Files are written by
the first process alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from nae_monitor.errors import ConfigurationError, InputDataError, Mark, Problem

T = TypeVar("T")
Step = Callable[[np.ndarray, int], torch.Tensor]  # rows of the batch, number of the step -> loss
WAIT = timedelta(hours=48)  # the others wait while the first collects or samples


def process_count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def own_device(device: str) -> str:
    """``cuda`` as the graphics card of this process; anything else as it is."""
    if device == "cuda" and process_count() > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device


def first_alone(work: Callable[[], None], device: str) -> None:
    """Let the first process do ``work`` while the others wait."""
    if is_first():
        work()
    if process_count() > 1:
        _accelerator(device.startswith("cpu")).wait_for_everyone()


@lru_cache(maxsize=1)
def _accelerator(cpu: bool) -> Any:
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError as error:
        problem = Problem(
            Mark("accelerate"), "is not installed", "pip install 'nae-monitor[train]'"
        )
        raise ConfigurationError([problem]) from error
    return Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)])


class _Stepping(nn.Module):
    """Makes the loss a module's forward, which is where gradients are hooked for averaging."""

    def __init__(self, model: nn.Module, step: Step) -> None:
        super().__init__()
        self.model = model  # registered, so that its parameters are averaged
        self._step = step

    def forward(self, rows: np.ndarray, number: int) -> torch.Tensor:
        return self._step(rows, number)


@dataclass(frozen=True, slots=True)
class Crew:
    """The processes of one training; alone, every method is the plain one."""

    step: Callable[[np.ndarray, int], torch.Tensor]
    accelerator: Any | None = None

    @classmethod
    def of(cls, model: nn.Module, step: Step) -> Crew:
        """This process alone, or as a part of all that were launched.

        Raises:
            ConfigurationError: several were launched and accelerate is not installed.
        """
        if process_count() == 1:
            return cls(step)
        accelerator = _accelerator(next(model.parameters()).device.type == "cpu")
        return cls(accelerator.prepare_model(_Stepping(model, step)), accelerator)

    @property
    def count(self) -> int:
        """How many."""
        return self.accelerator.num_processes if self.accelerator else 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes."""
        return self.accelerator is None or bool(self.accelerator.is_main_process)

    def loss(self, rows: np.ndarray, number: int) -> tuple[torch.Tensor, float]:
        """The loss of this process's share of ``rows``, and its mean over all of them.

        Raises:
            InputDataError: fewer rows than processes.
        """
        if self.accelerator is None:
            loss = self.step(rows, number)
            return loss, float(loss.detach())
        if len(rows) < self.count:
            raise InputDataError(f"{len(rows)} rows are too few for {self.count} processes")
        loss = self.step(rows[self.accelerator.process_index :: self.count], number)
        return loss, float(self.accelerator.reduce(loss.detach(), reduction="mean"))

    def agree(self, found: Callable[[], T]) -> T:
        """What the first process finds, in all of them: decisions must not differ."""
        if self.accelerator is None:
            return found()
        from accelerate.utils import broadcast_object_list

        shared = [found() if self.is_first else None]
        result: T = broadcast_object_list(shared)[0]
        return result

    def finish(self) -> None:
        """Wait for all, and let go of the model."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
            self.accelerator.free_memory()
