"""A worker process that takes rows as any worker does and decodes at once, by a double.

The decoding that the claims leave out would take the second of two cores.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nae_monitor.alert import build_sinks
from nae_monitor.detect import Judge, load_rules
from nae_monitor.health import Health
from nae_monitor.models import load_target_tokenizer
from nae_monitor.parts import Parts
from nae_monitor.placement.worker import Worker
from nae_monitor.screen import Directions
from nae_monitor.settings import Settings
from nae_monitor.testing import FakeDecoder
from nae_monitor.token_text import TokenText

END_S = 10.0


def instant_parts(settings: Settings, width: int, layer: int, health: Health) -> Parts:
    """The shipped rules beside a decoder that takes no time."""
    rules = load_rules(settings.detect.rules)
    return Parts(FakeDecoder(width, layer), rules, Judge(rules, None, health))


def _main(settings: Settings, width: int, layer: int) -> None:
    torch.set_num_threads(1)
    health = Health()
    worker = Worker(
        settings,
        instant_parts(settings, width, layer, health),
        build_sinks(settings.alert, settings.privacy, health),
        health,
        text=TokenText(load_target_tokenizer(settings.target.model)),
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run(deadline_s=END_S / 2)


@contextmanager
def worker_process(settings: Settings, directions: Directions) -> Iterator[None]:
    """One worker on the first of the settings' endpoints; ``directions`` tell width and layer."""
    context: Any = multiprocessing.get_context("spawn")
    arguments = (settings, directions.d_model, directions.layer)
    process = context.Process(target=_main, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join(END_S)
        process.kill()
