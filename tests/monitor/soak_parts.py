"""A long run of a watched model, and what of ours is still there when its requests are over."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monitor_parts
import pytest

import nae_monitor
from nae_monitor.monitor import Monitor
from nae_monitor.recording import RecordingWriter
from nae_monitor.records import VerdictState

TEXTS = ("some plain words to learn from", "again and again", "words", "and words again")
NEW_TOKENS = 100
REMEMBERED = 8  # requests, where the package remembers 10,000
WAITING_ROWS = 512  # for their file of a recording, where it takes 2,048
WAIT_S = 120.0
OURS = str(Path(nae_monitor.__file__).parent / "*")


@dataclass(frozen=True, slots=True)
class Held:
    """What the package holds."""

    objects: Counter[str]  # instances of its classes, by name
    size_bytes: int  # of everything that was allocated by a line of its own


def remember_little(patch: pytest.MonkeyPatch) -> None:
    """Make what is kept by design small, so that it is full at once."""
    patch.setattr("nae_monitor.pipeline.requests.VERDICT_LIMIT", REMEMBERED)
    patch.setattr("nae_monitor.screen.budget.REQUEST_LIMIT", REMEMBERED)
    patch.setattr("nae_monitor.placement.reception.VERDICT_LIMIT", REMEMBERED)
    patch.setattr("nae_monitor.placement.ledgers.LIMIT", REMEMBERED)
    patch.setattr("nae_monitor.detect.decisions.MAX_REQUESTS", REMEMBERED)
    patch.setattr("nae_monitor.health.Health.__init__.__defaults__", (REMEMBERED,))
    patch.setitem(RecordingWriter.__init__.__kwdefaults__ or {}, "rotate_rows", WAITING_ROWS)


def generate_tokens(monitor: Monitor, model: Any, tokens: int, name: str) -> None:
    """Generate at least ``tokens`` in batches, and wait until they are judged."""
    inputs = monitor_parts.prompts(*TEXTS)
    batch = len(TEXTS) * NEW_TOKENS
    for number in range(-(-tokens // batch)):
        request_id = f"{name}-{number}"
        with (
            monitor.watch(model, monitor_parts.tokenizer()),
            monitor.request(request_id=request_id),
        ):
            monitor_parts.generate(
                model, inputs, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS
            )
        assert monitor.verdict(request_id, WAIT_S).state is not VerdictState.UNDECIDED


def held() -> Held:
    """What there is now; tracemalloc must be on."""
    gc.collect()
    objects = Counter(
        f"{type(one).__module__}.{type(one).__qualname__}"
        for one in gc.get_objects()
        if str(type(one).__module__).startswith("nae_monitor")
    )
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, OURS)])
    return Held(objects, sum(trace.size for trace in snapshot.traces))


@dataclass(frozen=True, slots=True)
class Growth:
    """What came to be held between a warm-up and the end of a longer run."""

    objects: Counter[str]
    size_bytes: int


def growth(monitor: Monitor, model: Any, warm_tokens: int, tokens: int) -> Growth:
    """Generate ``warm_tokens``, then ``tokens`` more; what is held beside what was held before."""
    tracemalloc.start()
    try:
        generate_tokens(monitor, model, warm_tokens, "warm")
        before = held()
        generate_tokens(monitor, model, tokens, "soak")
        after = held()
    finally:
        tracemalloc.stop()
    return Growth(after.objects - before.objects, after.size_bytes - before.size_bytes)
