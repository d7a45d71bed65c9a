"""A worker whose decoder answers at once, so that decoding takes nothing from the server beside it.

All else is the worker of ``nae-monitor worker``. Run with the configuration and the file that says
``{}`` once it receives and holds its counters once it has ended.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nae_monitor.alert import build_sinks
from nae_monitor.health import Health
from nae_monitor.models import load_target_tokenizer
from nae_monitor.parts import load_parts
from nae_monitor.placement.worker import Worker
from nae_monitor.settings import Settings
from nae_monitor.testing import FakeDecoder
from nae_monitor.token_text import TokenText


def main() -> None:
    """Receive until told to end."""
    settings, counters = Settings.from_yaml(sys.argv[1]), Path(sys.argv[2])
    health = Health()
    parts = load_parts(settings, health)
    own = parts.decoder
    decoder = FakeDecoder(own.d_model, own.layer, lambda vector: "nothing", own.nla_id)
    worker = Worker(
        settings,
        replace(parts, decoder=decoder),
        build_sinks(settings.alert, settings.privacy, health),
        health,
        text=TokenText(load_target_tokenizer(settings.target.model)),
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run(lambda: _write(counters, {}))
    _write(counters, health.counters())


def _write(path: Path, content: Mapping[str, int]) -> None:
    path.write_text(json.dumps(dict(content)), encoding="utf-8")


if __name__ == "__main__":
    main()
