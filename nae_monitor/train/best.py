"""The best state of a training by a named measure on the validation rows, and early stop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nae_monitor.errors import InputDataError
from nae_monitor.train.lora import save_state, state_facts
from nae_monitor.train.metrics import METRICS, read_metrics

STATE, BEST = "state.safetensors", "best.safetensors"


@dataclass(slots=True)
class Best:
    """Keeps ``best.safetensors`` beside the last state.

    ``measure`` is better when smaller if its name holds ``loss``, else when larger.
    """

    directory: Path
    measure: str | None
    step: int = 0
    value: float = math.nan

    @classmethod
    def of(cls, directory: Path, measure: str | None, first_step: int) -> Best:
        """What an interrupted run has kept; a state of a step not yet taken is removed."""
        best = cls(directory, measure)
        path = directory / BEST
        if not path.exists():
            return best
        try:
            facts = state_facts(path)
        except InputDataError:  # a copy that can be made again: never a reason to stop
            facts = {"step": math.inf}
        if facts["step"] > first_step or facts.get("measure") != measure:
            path.unlink()
            return best
        best.step, best.value = facts["step"], facts["value"]
        return best

    def offer(self, row: dict[str, Any], model: nn.Module) -> None:
        """Save the parameters if this measurement is the best so far.

        Raises:
            ConfigurationError: they cannot be written; the older file is kept.
        """
        value = row.get(self.measure) if self.measure else None
        if self.measure is None or value is None or not self._is_better(value):
            return
        path = self.directory / BEST
        save_state(path, model, None, row["step"], measure=self.measure, value=value)
        self.step, self.value = row["step"], value

    def is_exhausted(self, patience: int | None) -> bool:
        """Whether ``patience`` measurements in a row brought nothing better."""
        if patience is None or self.measure is None or not self.step:
            return False
        rows = read_metrics(self.directory / METRICS)
        later = [r for r in rows if r.get("step", 0) > self.step and self.measure in r]
        return len(later) >= patience

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value) or math.isnan(self.value):
            return math.isfinite(value)
        assert self.measure is not None
        return value < self.value if "loss" in self.measure else value > self.value


def final_state(directory: Path) -> Path:
    """The state that later stages use: the best one where one was kept, else the last.

    Where the last state was measured and is as good, both hold the same parameters.
    """
    best = directory / BEST
    return best if best.exists() else directory / STATE
