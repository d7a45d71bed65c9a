"""Where a step's microseconds go: the hooks as the model calls them, and the parts inside."""

from __future__ import annotations

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from nae_monitor.capture.generation import Generation
from nae_monitor.pipeline.serving import ServingSide
from nae_monitor.screen.scorer import Scorer
from serving_cost.variants import LAYER, Bench, Variant

TOTAL = "all of our code"
PARTS: Mapping[str, tuple[type, str]] = {
    "before the pass: learn the token, count": (Generation, "before_pass"),
    "behind the block: everything": (Generation, "after_block"),
    "of it, listener: screen, ledger, queue": (ServingSide, "rows"),
    "of it, screen: score and choose": (ServingSide, "_offers"),
    "of it, the products": (Scorer, "__call__"),
}


def profile(bench: Bench, variant: Variant, ids: torch.Tensor, new_tokens: int) -> dict[str, float]:
    """Microseconds by part: the total a decode step, each part a call of it; both means.

    Means, because most steps only keep their rows and every eighth pays for them all. The total is
    of a generation of its own, timed around the two hooks alone.
    """
    with variant.around(), _timed_hooks(bench.target.model) as times:
        bench.generate(ids, new_tokens, None)
    hooks = [statistics.mean(times[name][1:]) for name in ("before", "behind")]
    found = {TOTAL: sum(hooks) * 1e6}
    with _timed_parts() as times, variant.around():
        bench.generate(ids, new_tokens, None)
    for name in PARTS:
        found[name] = statistics.mean(times[name][1:] or [0.0]) * 1e6
    return found


@contextmanager
def _timed_hooks(model: Any) -> Iterator[Mapping[str, list[float]]]:
    times: dict[str, list[float]] = defaultdict(list)
    block = model.model.layers[LAYER - 1]
    for name, hooks in (("before", model._forward_pre_hooks), ("behind", block._forward_hooks)):
        for key, hook in list(hooks.items()):
            hooks[key] = _clocked(hook, times[name])
    yield times


@contextmanager
def _timed_parts() -> Iterator[Mapping[str, list[float]]]:
    times: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as put_back:
        for name, (owner, method) in PARTS.items():
            original = owner.__dict__[method]
            setattr(owner, method, _clocked(original, times[name]))
            put_back.callback(setattr, owner, method, original)
        yield times


def _clocked(function: Callable[..., Any], times_s: list[float]) -> Callable[..., Any]:
    @functools.wraps(function)
    def clocked(*arguments: Any, **named: Any) -> Any:
        start_s = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            times_s.append(time.perf_counter() - start_s)

    return clocked
