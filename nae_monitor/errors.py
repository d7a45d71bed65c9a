"""Every error this package raises on purpose.

::

    NaeMonitorError                  exit code
    ├── ConfigurationError   2       settings, rules, checkpoints: all problems at once
    │   ├── RuleError        2       a rule pack that does not load
    │   ├── CheckpointError  2       an NLA directory that breaks its contract
    │   └── ModelError       2       a target model that cannot be found, fetched or used
    ├── UnsupportedError     2       a request the monitor refuses to serve half-blind (beam search)
    ├── InputDataError       3       data that is not what it says it is
    │   ├── VectorError      3       an activation of the wrong width, zero, or not finite
    │   └── RecordingError   3       a recording that is truncated, foreign or of another model
    ├── EngineError          1       a remote decode engine that did not answer in time
    ├── AbandonedError       1       a decode that nobody waits for any more
    └── SinkError            1       an alert sink that cannot take events

Serving code never sees these: they are raised at start-up, from the command line and by offline
work. At run time a failure is counted in :mod:`nae_monitor.health` and the host goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a text file. ``line`` and ``column`` count from 1; 0 means the whole file."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one place: what, where, and how to mend it."""

    where: Mark
    message: str
    mend: str = ""
    code: str = ""

    def __str__(self) -> str:
        code = f" [{self.code}]" if self.code else ""
        mend = f" ({self.mend})" if self.mend else ""
        return f"{self.where}: {self.message}{mend}{code}"


class NaeMonitorError(Exception):
    """Root of the tree; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class ConfigurationError(NaeMonitorError):
    """A start that must not happen. Lists every problem found, one a line."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems: tuple[Problem, ...] = () if isinstance(problems, str) else tuple(problems)
        super().__init__(
            problems if isinstance(problems, str) else "\n".join(str(p) for p in self.problems)
        )


class RuleError(ConfigurationError):
    """A rule file that cannot be loaded."""


class CheckpointError(ConfigurationError):
    """An NLA checkpoint that breaks its contract; the message names the file and the key."""


class ModelError(ConfigurationError):
    """A target model or encoder that cannot be found, fetched, verified or used."""


class UnsupportedError(NaeMonitorError):
    """Something the monitor refuses because it could only watch it half-blind."""

    exit_code = 2


class InputDataError(NaeMonitorError):
    """Data that is not what it claims to be."""

    exit_code = 3


class VectorError(InputDataError):
    """An activation that cannot be decoded: wrong width, zero norm, NaN or infinity."""


class RecordingError(InputDataError):
    """A recording that is truncated, foreign, or of another model, layer or width."""


class EngineError(NaeMonitorError):
    """A remote decode engine that did not answer within its deadline."""


class AbandonedError(NaeMonitorError):
    """A decode that was given up, since nobody wants its texts any more."""


class SinkError(NaeMonitorError):
    """An alert sink that cannot take events."""
