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
    optimizer = _optimizer(model, lora)
    first = _resume(model, optimizer, directory, options)
    crew = Crew.of(model, step)
    record = _Record(directory, options, report) if crew.is_first else None
    if record:
        record.begin(first)
    training = _Training(model, optimizer, crew, record, directory / STATE, lora, options, first)
    training.run(lengths, evaluate)
    crew.finish()
    return training.done


def is_finished(directory: Path, options: FitOptions) -> bool:
    """Whether a training there took all its steps or lost its patience."""
    state = directory / STATE
    if not state.exists():
        return False
    step = int(state_facts(state)["step"])
    best = Best.of(directory, options.measure, step)
    return step >= options.steps or best.is_exhausted(options.patience)


def _optimizer(model: nn.Module, lora: LoraOptions) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        trainable(model).values(),
        lr=lora.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=lora.weight_decay,
    )


def _resume(
    model: nn.Module, optimizer: torch.optim.Optimizer, directory: Path, options: FitOptions
) -> int:
    """The step to go on from."""
    if (directory / STATE).exists():
        return load_state(directory / STATE, model, optimizer)
    if options.start is not None:
        load_state(options.start, model, None)
    return 0


@dataclass(slots=True)
class _Training:
    """One process's part of a training, and how far it has come."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    crew: Crew
    record: _Record | None  # None: another process writes
    state: Path
    lora: LoraOptions
    options: FitOptions
    done: int  # steps

    def run(self, lengths: Sequence[int], evaluate: Evaluate) -> None:
        """Take steps until one of the ends is reached; measured and saved on the way."""
        options, record, first = self.options, self.record, self.done
        size = self.lora.batch_size * self.crew.count
        batches = endless_batches(lengths, size, seed=options.seed, first_step=first)
        started_s = time.monotonic()
        ended = self.done >= options.steps or self.crew.agree(self._is_exhausted)
        while not ended:
            row = self._step(next(batches), lengths)
            if record:
                record.step(row)
            is_last = self.done == options.steps or self._is_late(started_s)
            if is_last or self.done % options.evaluate_every == 0:
                speed = (self.done - first) * size / (time.monotonic() - started_s)
                ended = self.crew.agree(partial(self._measured, speed, evaluate))
            ended = ended or is_last
            if record and (ended or self.done % options.save_every == 0):
                save_state(self.state, self.model, self.optimizer, self.done)
        if record:
            record.log.flush()

    def _step(self, rows: np.ndarray, lengths: Sequence[int]) -> StepRow:
        began_s = time.monotonic()
        rate = schedule(self.done, self.options.steps, self.lora)
        loss = self._update(rows, rate)
        if loss is None:
            raise _failed(self.state, self.done)
        self.done += 1
        tokens = sum(lengths[i] for i in rows)
        return StepRow(self.done, loss, rate, len(rows), tokens, time.monotonic() - began_s)

    def _update(self, rows: np.ndarray, rate: float) -> float | None:
        """One optimizer step and its loss; None, with the parameters untouched, if not finite."""
        loss, value = self.crew.loss(rows, self.done)
        if not math.isfinite(value):
            return None
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = trainable(self.model).values()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.lora.clip_norm)
        if not math.isfinite(float(norm)):
            return None
        self.optimizer.step()
        return value

    def _is_late(self, started_s: float) -> bool:
        limit_s = self.options.time_limit_s
        if limit_s is None:
            return False
        return self.crew.agree(lambda: time.monotonic() - started_s > limit_s)

    def _is_exhausted(self) -> bool:
        return self.record is not None and self.record.is_exhausted

    def _measured(self, speed: float, evaluate: Evaluate) -> bool:
        """Measure, in the first process alone; True where the patience has ended."""
        if self.record is not None:
            self.record.measure(self.done, speed, evaluate(), self.model)
        return self._is_exhausted()


def _failed(state: Path, step: int) -> TrainingFailedError:
    kept = f"{state} is the last good state" if state.exists() else "no state was saved"
    return TrainingFailedError(f"loss or gradient is not finite at step {step}; {kept}")


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
