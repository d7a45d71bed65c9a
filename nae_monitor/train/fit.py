"""The training loop both halves share: resumable, measured, stopped when a loss goes bad."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nae_monitor.errors import NaeMonitorError
from nae_monitor.train.batches import endless_batches
from nae_monitor.train.lora import LoraOptions, load_state, save_state, schedule, trainable


class TrainingFailedError(NaeMonitorError):
    """The loss turned NaN or infinite; the last good checkpoint is kept."""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Length of a run and how often it is measured and saved."""

    steps: int
    seed: int = 0
    evaluate_every: int = 100
    save_every: int = 100
    time_limit_s: float | None = None  # stop cleanly after this long, resumable


Step = Callable[[np.ndarray], torch.Tensor]  # rows of the batch -> loss
Evaluate = Callable[[], dict[str, float]]
Report = Callable[[dict[str, Any]], None]


def fit(
    model: nn.Module,
    lengths: Sequence[int],
    step: Step,
    evaluate: Evaluate,
    directory: Path,
    lora: LoraOptions,
    options: FitOptions,
    report: Report = lambda row: None,
) -> int:
    """Train until ``options.steps`` or the time limit; returns the steps done.

    State goes to ``directory/state.safetensors``, one metrics row a measurement to
    ``metrics.jsonl``. A run that is killed resumes from the last state on the same batches.

    Raises:
        TrainingFailedError: the loss is not finite; the saved state is the last good one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = directory / "state.safetensors"
    optimizer = torch.optim.AdamW(
        trainable(model).values(),
        lr=lora.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=lora.weight_decay,
    )
    first = load_state(state, model, optimizer) if state.exists() else 0
    batches = endless_batches(lengths, lora.batch_size, seed=options.seed, first_step=first)
    started, recent = time.monotonic(), []
    done = first
    for number in range(first, options.steps):
        loss = _update(
            model,
            optimizer,
            step(next(batches)),
            schedule(number, options.steps, lora),
            lora.clip_norm,
        )
        if not math.isfinite(loss):
            raise TrainingFailedError(
                f"loss is {loss} at step {number}; {state} is the last good state"
            )
        recent.append(loss)
        done = number + 1
        late = options.time_limit_s and time.monotonic() - started > options.time_limit_s
        if done % options.evaluate_every == 0 or done == options.steps or late:
            elapsed_s = time.monotonic() - started
            row: dict[str, Any] = {
                "step": done,
                "loss": float(np.mean(recent[-options.evaluate_every :])),
                "examples_per_s": (done - first) * lora.batch_size / elapsed_s,
                **evaluate(),
            }
            with (directory / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            report(row)
        if done % options.save_every == 0 or done == options.steps or late:
            save_state(state, model, optimizer, done)
        if late:
            break
    return done


def _update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: torch.Tensor,
    rate: float,
    clip_norm: float,
) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        return value
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(trainable(model).values(), clip_norm)
    optimizer.step()
    return value
