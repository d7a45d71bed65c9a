"""A worker process that takes rows as any worker does and decodes at once, by a double.

The decoding that the claims leave out would take the second of two cores.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from nae_monitor.alert import build_sinks
from nae_monitor.detect import Judge, load_rules
from nae_monitor.health import Health
from nae_monitor.models import load_target_tokenizer
from nae_monitor.parts import Parts
from nae_monitor.placement.worker import Worker
from nae_monitor.records import Decoding
from nae_monitor.screen import Directions
from nae_monitor.settings import Settings
from nae_monitor.testing import FakeDecoder
from nae_monitor.token_text import TokenText

END_S = 10.0


def instant_parts(settings: Settings, width: int, layer: int, health: Health) -> Parts:
    """The shipped rules beside a decoder that takes no time."""
    rules = load_rules(settings.detect.rules)
    return Parts(FakeDecoder(width, layer), rules, Judge(rules, None, health))


class _Counting(FakeDecoder):
    """Tells another process how many rows it was given."""

    rows: Any

    def decode(
        self, vectors: torch.Tensor, *, seeds: Sequence[int] | None = None
    ) -> list[Decoding]:
        self.rows.value += len(vectors)
        return super().decode(vectors, seeds=seeds)


def _main(settings: Settings, width: int, layer: int, rows: Any) -> None:
    torch.set_num_threads(1)
    health = Health()
    parts = instant_parts(settings, width, layer, health)
    decoder = _Counting(width, layer)
    decoder.rows = rows
    worker = Worker(
        settings,
        replace(parts, decoder=decoder),
        build_sinks(settings.alert, settings.privacy, health),
        health,
        text=TokenText(load_target_tokenizer(settings.target.model)),
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run(deadline_s=END_S / 2)


@contextmanager
def worker_process(settings: Settings, directions: Directions) -> Iterator[Any]:
    """One worker on the first of the settings' endpoints; ``directions`` tell width and layer.

    Yields a number whose ``value`` is how many rows have reached it.
    """
    context: Any = multiprocessing.get_context("spawn")
    rows = context.Value("q", 0)
    arguments = (settings, directions.d_model, directions.layer, rows)
    process = context.Process(target=_main, args=arguments, daemon=True)
    process.start()
    try:
        yield rows
    finally:
        process.terminate()
        process.join(END_S)
        process.kill()
