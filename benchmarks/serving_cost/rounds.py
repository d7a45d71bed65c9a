"""Generations timed in adjacent pairs, and what the pairs come to."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reporting.claims import Bound, Claim

from nae_monitor.settings import CaptureSettings
from serving_cost.variants import Variant

PROMPT_TOKENS = 128
WINDOW_TOKENS = CaptureSettings().gather_steps
DRAWS, QUANTILES = 2000, (0.025, 0.975)


@dataclass(frozen=True, eq=False, slots=True)
class Timed:
    """One generation, in seconds."""

    whole: float
    first_token: float  # NaN where the tokens could not be timed one by one
    gaps: np.ndarray  # [new tokens - 1], between tokens


@dataclass(frozen=True, slots=True)
class Pair:
    """A generation of a variant, and one without a monitor right before or behind it."""

    base: Timed
    variant: Timed


class _Clock:
    """A streamer that keeps nothing but when it was called: with the prompt, then by token."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, _value: torch.Tensor) -> None:
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to show."""


def prompts(batch: int, seed: int = 0) -> torch.Tensor:
    """Ids [batch, PROMPT_TOKENS] of ordinary tokens; what they say changes no cost."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(1_000, 40_000, (batch, PROMPT_TOKENS), generator=random)


def timed(variant: Variant, ids: torch.Tensor, new_tokens: int) -> Timed:
    """One generation of ``ids`` [S, T]."""
    clock: Any = _Clock() if variant.streams else None
    with variant.around():
        start_s = time.perf_counter()
        variant.generate(ids, new_tokens, clock)
        whole_s = time.perf_counter() - start_s
    if clock is None:
        return Timed(whole_s, float("nan"), np.empty(0))
    return Timed(whole_s, clock.times_s[1] - start_s, np.diff(clock.times_s[1:]))


def in_pairs(
    base: Variant,
    variants: Sequence[Variant],
    batch: int,
    new_tokens: int,
    rounds: int,
    report: Callable[[str, int, int], None],
) -> dict[str, list[Pair]]:
    """Pairs of every variant, by its name.

    Each round takes every variant once, beginning with another one, and its base before it in one
    round and behind it in the next: what else the machine does falls on both of a pair alike.
    """
    found: dict[str, list[Pair]] = {variant.name: [] for variant in variants}
    for number in range(rounds):
        ids = prompts(batch, number)
        first = number % len(variants)
        for variant in (*variants[first:], *variants[:first]):
            order = (base, variant) if number % 2 else (variant, base)
            times = {one.name: timed(one, ids, new_tokens) for one in order}
            found[variant.name].append(Pair(times[base.name], times[variant.name]))
        report(f"batch {batch}", number + 1, rounds)
    return found


def rate(name: str, pairs: Sequence[Pair], bound: Bound | None) -> Claim:
    """Tokens/s against no monitor: the median over the pairs."""
    ratios = np.array([pair.base.whole / pair.variant.whole for pair in pairs])
    return over_pairs(name, ratios, lambda drawn: np.median(ratios[drawn], axis=-1), bound)


def window_rate(name: str, pairs: Sequence[Pair], bound: Bound | None) -> Claim:
    """Decode speed against no monitor: the ratio of the median windows of all generations.

    A window is as many tokens as rows are gathered for, so that each holds the same share of our
    work; what else a machine does falls on a few windows, and the median leaves those out.
    """
    ours = np.stack([_windows(pair.variant.gaps) for pair in pairs])
    theirs = np.stack([_windows(pair.base.gaps) for pair in pairs])

    def ratio(drawn: np.ndarray) -> np.ndarray:
        pooled = [a[drawn].reshape(*drawn.shape[:-1], -1) for a in (theirs, ours)]
        return np.asarray(np.median(pooled[0], axis=-1) / np.median(pooled[1], axis=-1))

    return over_pairs(name, ours, ratio, bound)


def _windows(gaps: np.ndarray) -> np.ndarray:
    """Seconds [windows] of whole windows of tokens; of all of them where they are too few."""
    tokens = min(WINDOW_TOKENS, len(gaps))
    whole = len(gaps) // tokens
    return gaps[: whole * tokens].reshape(whole, tokens).sum(axis=1)


def first_token(name: str, pairs: Sequence[Pair], bound: Bound | None) -> Claim:
    """Time to the first token against no monitor: the median over the pairs."""
    ratios = np.array([pair.variant.first_token / pair.base.first_token for pair in pairs])
    return over_pairs(name, ratios, lambda drawn: np.median(ratios[drawn], axis=-1), bound)


def slow_gaps(name: str, pairs: Sequence[Pair], bound: Bound | None) -> Claim:
    """The 99th percentile of the time between tokens, over all pairs, against no monitor."""
    ours = np.stack([pair.variant.gaps for pair in pairs])
    theirs = np.stack([pair.base.gaps for pair in pairs])

    def ratio(drawn: np.ndarray) -> np.ndarray:
        pooled = [a[drawn].reshape(*drawn.shape[:-1], -1) for a in (ours, theirs)]
        high = [np.quantile(a, 0.99, axis=-1) for a in pooled]
        return np.asarray(high[0] / high[1])

    return over_pairs(name, ours, ratio, bound)


def over_pairs(
    name: str,
    values: np.ndarray,
    figure: Callable[[np.ndarray], np.ndarray],
    bound: Bound | None,
    unit: str = "x",
) -> Claim:
    """A figure of all pairs, with an interval from a bootstrap that draws whole pairs."""
    everything = np.arange(len(values))
    drawn = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    # In lots, since the gaps of all draws at once would fill the memory.
    figures = np.concatenate([figure(lot) for lot in np.array_split(drawn, 40)])
    low, high = np.quantile(figures, QUANTILES)
    return Claim(name, float(figure(everything)), float(low), float(high), unit, bound)


def peak_mib(work: Callable[[], object]) -> float | None:
    """The most memory that this process held while ``work`` ran; None where Linux does not tell."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        work()
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
