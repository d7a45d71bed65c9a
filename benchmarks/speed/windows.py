"""Short windows of training steps, variant after variant in turn, and their medians."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reporting.claims import Bound, Claim

from nae_monitor.train.fit import FitOptions, fit
from speed.steps import Variant, Work

DRAWS = 2000
QUANTILES = (0.025, 0.975)


def examples_per_s(variant: Variant, work: Work, steps: int) -> float:
    """What the trainer's own loop reports of ``steps`` steps, optimizer included.

    Raises:
        TrainingFailedError: a loss turned NaN.
        ConfigurationError: the temporary directory cannot be written.
    """
    variant.prepare()
    rows: list[dict[str, Any]] = []
    options = FitOptions(steps, work.seed, evaluate_every=steps, save_every=steps)
    lengths = [work.tokens] * work.examples
    with tempfile.TemporaryDirectory(prefix="train-speed-") as place:
        fit(
            variant.model,
            lengths,
            variant.step,
            dict,  # nothing to evaluate
            Path(place),
            work.lora,
            options,
            rows.append,
        )
    return float(rows[-1]["examples_per_s"])


def interleaved(
    chosen: Sequence[Variant],
    work: Work,
    *,
    rounds: int,
    steps: int,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, np.ndarray]:
    """Examples/s [rounds] of each variant by name.

    Each round takes every variant once, starting with another one, so that what else the machine
    does falls on all alike. A window of one step warms each up and is not counted.
    """
    for done, variant in enumerate(chosen):
        report("warm up", done, len(chosen))
        examples_per_s(variant, work, 1)
    report("warm up", len(chosen), len(chosen))
    rates: dict[str, list[float]] = {variant.name: [] for variant in chosen}
    for number in range(rounds):
        first = number % len(chosen)
        for variant in (*chosen[first:], *chosen[:first]):
            rates[variant.name].append(examples_per_s(variant, work, steps))
        report("rounds", number + 1, rounds)
    return {name: np.array(found) for name, found in rates.items()}


def median(
    name: str, values: np.ndarray, unit: str, bound: Bound | None = None, *, seed: int = 0
) -> Claim:
    """The median of ``values`` [n] with a 95 % interval from a bootstrap over the windows."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), QUANTILES)
    return Claim(name, float(np.median(values)), float(low), float(high), unit, bound)


def ratio_over_plain(half_and_dtype: str, rates: Mapping[str, np.ndarray]) -> Claim:
    """How much faster the trainer's step is than the plain one, paired by round."""
    quotient = rates[f"{half_and_dtype}, trainer"] / rates[f"{half_and_dtype}, plain"]
    return median(f"{half_and_dtype}: trainer over plain", quotient, "x")
