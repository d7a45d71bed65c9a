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
from nae_monitor.train.files import make_directory, replacing, write_errors
from nae_monitor.train.lora import LoraOptions, load_state, save_state, schedule, trainable

STATE, METRICS = "state.safetensors", "metrics.jsonl"


class TrainingFailedError(NaeMonitorError):
    """The loss or its gradient turned NaN or infinite; the last good state is kept."""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Length of a run and how often it is measured and saved."""

    steps: int
    seed: int = 0
    evaluate_every: int = 100
    save_every: int = 100
    time_limit_s: float | None = None  # stop cleanly after this long, resumable


Step = Callable[[np.ndarray, int], torch.Tensor]  # rows of the batch, number of the step -> loss
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
    ``metrics.jsonl``. A run that is killed resumes from the last state on the same batches and
    ends where it would have ended, provided that ``step`` draws nothing but from its arguments.

    Raises:
        TrainingFailedError: loss or gradient is not finite; the saved state is the last good one.
        ConfigurationError: state or metrics cannot be written; the older state is kept.
        InputDataError: the state found is damaged or of another recipe.
    """
    make_directory(directory)
    state = directory / STATE
    optimizer = torch.optim.AdamW(
        trainable(model).values(),
        lr=lora.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=lora.weight_decay,
    )
    first = load_state(state, model, optimizer) if state.exists() else 0
    _forget_after(directory / METRICS, first)
    batches = endless_batches(lengths, lora.batch_size, seed=options.seed, first_step=first)
    started_s, done = time.monotonic(), first
    recent: list[float] = []
    while done < options.steps:
        loss = step(next(batches), done)
        rate = schedule(done, options.steps, lora)
        if not _update(model, optimizer, loss, rate, lora.clip_norm):
            kept = f"{state} is the last good state" if state.exists() else "no state was saved"
            raise TrainingFailedError(f"loss or gradient is not finite at step {done}; {kept}")
        recent.append(float(loss.detach()))
        done += 1
        elapsed_s = time.monotonic() - started_s
        is_late = options.time_limit_s is not None and elapsed_s > options.time_limit_s
        is_last = is_late or done == options.steps
        if is_last or done % options.evaluate_every == 0:
            row = {
                "step": done,
                "loss": float(np.mean(recent[-options.evaluate_every :])),
                "examples_per_s": (done - first) * lora.batch_size / elapsed_s,
                **evaluate(),
            }
            _append(directory / METRICS, row)
            report(row)
        if is_last or done % options.save_every == 0:
            save_state(state, model, optimizer, done)
        if is_late:
            break
    return done


def _update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: torch.Tensor,
    rate: float,
    clip_norm: float,
) -> bool:
    """One optimizer step; False, with the parameters untouched, where it is not finite."""
    if not math.isfinite(float(loss.detach())):
        return False
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(trainable(model).values(), clip_norm)
    if not math.isfinite(float(norm)):
        return False
    optimizer.step()
    return True


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The measurements of a run, oldest first; a line that a kill tore is left out."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _append(path: Path, row: dict[str, Any]) -> None:
    with write_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _forget_after(path: Path, step: int) -> None:
    """Drop measurements of steps that were lost with a kill: they will be taken again."""
    rows = read_metrics(path)
    kept = [row for row in rows if row.get("step", 0) <= step]
    if path.exists() and path.read_text(encoding="utf-8") != _lines(kept):
        with replacing(path) as temporary:
            temporary.write_text(_lines(kept), encoding="utf-8")


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
