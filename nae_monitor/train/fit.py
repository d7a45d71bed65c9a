"""The training loop both halves share: resumable, measured, stopped when a loss goes bad."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nae_monitor.errors import NaeMonitorError
from nae_monitor.train.batches import endless_batches
from nae_monitor.train.best import STATE, Best
from nae_monitor.train.files import make_directory
from nae_monitor.train.lora import (
    LoraOptions,
    load_state,
    save_state,
    schedule,
    state_facts,
    trainable,
)
from nae_monitor.train.metrics import (
    METRICS,
    STEPS,
    StepLog,
    StepRow,
    append_row,
    forget_after,
    read_metrics,
)
from nae_monitor.train.processes import Crew, Step

__all__ = [
    "METRICS",
    "STATE",
    "FitOptions",
    "TrainingFailedError",
    "fit",
    "is_finished",
    "read_metrics",
]


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
    measure: str | None = None  # of the evaluations: its best state is kept, too
    patience: int | None = None  # stop after so many evaluations without a better one
    start: Path | None = None  # a state whose parameters a fresh run begins with
    on_step: Callable[[StepRow], None] = lambda row: None


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
    """Train until ``options.steps``, the patience or the time limit ends; returns the steps done.

    State goes to ``directory/state.safetensors``, the best one by ``options.measure`` to
    ``best.safetensors``, one row a measurement to ``metrics.jsonl`` and one a step to
    ``steps.jsonl``. A run that is killed resumes from the last state on the same batches and ends
    where it would have ended, provided that ``step`` draws nothing but from its arguments.

    Args:
        model: whose trainable parameters are trained and saved.
        lengths: of the examples, in tokens: batches hold examples of like length.
        step: loss of some rows.
        evaluate: measures on held-out rows.
        directory: of the state and the metrics.
        lora: batch size, which several processes take each, rates and clipping.
        options: see there.
        report: takes each measurement.

    Raises:
        TrainingFailedError: loss or gradient is not finite; the saved state is the last good one.
        ConfigurationError: state or metrics cannot be written; the older state is kept.
        InputDataError: the state found is damaged or of another recipe.
    """
    make_directory(directory)
    optimizer = torch.optim.AdamW(
        trainable(model).values(),
        lr=lora.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=lora.weight_decay,
    )
    done = first = _resume(model, optimizer, directory, options)
    crew = Crew.of(model, step)
    record = _Record(directory, options, report) if crew.is_first else None
    if record:
        record.begin(first)
    size = lora.batch_size * crew.count
    batches = endless_batches(lengths, size, seed=options.seed, first_step=first)
    started_s = time.monotonic()
    ended = done >= options.steps or crew.agree(lambda: record is not None and record.is_exhausted)
    while not ended:
        rows, began_s = next(batches), time.monotonic()
        rate = schedule(done, options.steps, lora)
        loss = _update(crew, model, optimizer, rows, done, rate, lora.clip_norm)
        if loss is None:
            raise _failed(directory / STATE, done)
        done += 1
        if record:
            tokens = sum(lengths[i] for i in rows)
            taken_s = time.monotonic() - began_s
            record.step(StepRow(done, loss, rate, len(rows), tokens, taken_s))
        is_last = done == options.steps or _is_late(crew, started_s, options.time_limit_s)
        if is_last or done % options.evaluate_every == 0:
            speed = (done - first) * size / (time.monotonic() - started_s)
            ended = crew.agree(partial(_measured, record, done, speed, evaluate, model))
        ended = ended or is_last
        if record and (ended or done % options.save_every == 0):
            save_state(directory / STATE, model, optimizer, done)
    if record:
        record.log.flush()
    crew.finish()
    return done


def is_finished(directory: Path, options: FitOptions) -> bool:
    """Whether a training there took all its steps or lost its patience."""
    state = directory / STATE
    if not state.exists():
        return False
    step = int(state_facts(state)["step"])
    best = Best.of(directory, options.measure, step)
    return step >= options.steps or best.is_exhausted(options.patience)


def _resume(
    model: nn.Module, optimizer: torch.optim.Optimizer, directory: Path, options: FitOptions
) -> int:
    """The step to go on from."""
    if (directory / STATE).exists():
        return load_state(directory / STATE, model, optimizer)
    if options.start is not None:
        load_state(options.start, model, None)
    return 0


def _update(
    crew: Crew,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: np.ndarray,
    number: int,
    rate: float,
    clip_norm: float,
) -> float | None:
    """One optimizer step and its loss; None, with the parameters untouched, if not finite."""
    loss, value = crew.loss(rows, number)
    if not math.isfinite(value):
        return None
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(trainable(model).values(), clip_norm)
    if not math.isfinite(float(norm)):
        return None
    optimizer.step()
    return value


def _failed(state: Path, step: int) -> TrainingFailedError:
    kept = f"{state} is the last good state" if state.exists() else "no state was saved"
    return TrainingFailedError(f"loss or gradient is not finite at step {step}; {kept}")


def _is_late(crew: Crew, started_s: float, limit_s: float | None) -> bool:
    if limit_s is None:
        return False
    return crew.agree(lambda: time.monotonic() - started_s > limit_s)


def _measured(
    record: _Record | None, step: int, speed: float, evaluate: Evaluate, model: nn.Module
) -> bool:
    """Measure, in the first process alone; True where the patience has ended."""
    if record is None:
        return False
    record.measure(step, speed, evaluate(), model)
    return record.is_exhausted


class _Record:
    """The files beside the state, which the first process writes."""

    def __init__(self, directory: Path, options: FitOptions, report: Report) -> None:
        self.directory, self._options, self._report = directory, options, report
        self.log = StepLog(directory / STEPS, options.steps)
        self._best = Best(directory, options.measure)
        self._losses: deque[float] = deque(maxlen=options.evaluate_every)

    def begin(self, first: int) -> None:
        """Forget what was lost with a kill."""
        for name in (METRICS, STEPS):
            forget_after(self.directory / name, first)
        self._best = Best.of(self.directory, self._options.measure, first)

    @property
    def is_exhausted(self) -> bool:
        return self._best.is_exhausted(self._options.patience)

    def step(self, row: StepRow) -> None:
        self._losses.append(row.loss)
        self.log.add(row)
        self._options.on_step(row)

    def measure(self, step: int, speed: float, found: dict[str, float], model: nn.Module) -> None:
        loss = sum(self._losses) / len(self._losses)
        row = {"step": step, "loss": loss, "examples_per_s": speed, **found}
        append_row(self.directory / METRICS, row)
        self._best.offer(row, model)
        self._report(row)
