"""Where captured rows go, and the boundary at which a listener's failures stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from nae_monitor.capture.listener import CaptureListener
from nae_monitor.health import Health
from nae_monitor.settings import CaptureSettings

COMPONENTS = frozenset(
    f"capture.{part}"
    for part in (
        "options",
        "start",
        "pass",
        "block",
        "end",
        "started",
        "rows",
        "tokens",
        "finished",
    )
)


@dataclass(frozen=True, eq=False, slots=True)
class Sink:
    """Where a generation's rows go, and which of them."""

    listener: CaptureListener
    health: Health
    settings: CaptureSettings
    layer: int
    model_name: str
    device: torch.device  # of the watched block

    @property
    def quiet(self) -> bool:
        """Whether a circuit is open, so that nothing is captured any more."""
        return self.health.any_open(COMPONENTS)

    def call(self, part: str, method: Callable[..., None], *arguments: object) -> bool:
        """Call the listener at the host boundary; False where it failed."""
        with self.health.guard(f"capture.{part}"):
            method(*arguments)
            return True
        return False
