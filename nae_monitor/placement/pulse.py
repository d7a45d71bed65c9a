"""A file by which a probe sees that a worker takes what comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.health import Health

EVERY_S = 1.0


class Pulse:
    """Touches a file at every beat, at most once a second.

    The loop that receives beats; so the file is there once the worker is ready, grows old where
    that loop hangs or has died, and is removed in the end.

    Args:
        path: of the file; None: there is none.
        health: counts failures to touch it.
        clock: in seconds.

    Raises:
        ConfigurationError: it cannot be made.
    """

    def __init__(
        self, path: Path | None, health: Health, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._health = health
        self._clock = clock
        self._next_s = 0.0
        try:
            if path is not None:  # one of a worker that was killed must not speak for this one
                path.touch()
                path.unlink()
        except OSError as error:
            mend = "name a file in a directory this user may write"
            raise ConfigurationError(
                [Problem(Mark(str(path)), f"cannot be written: {error.strerror}", mend)]
            ) from error

    def beat(self) -> None:
        """Say that the loop turns; never raises."""
        now_s = self._clock()
        if self._path is None or now_s < self._next_s:
            return
        self._next_s = now_s + EVERY_S
        with self._health.guard("worker.alive_file"):
            self._path.touch()

    def end(self) -> None:
        """The worker takes no more; never raises."""
        if self._path is not None:
            with self._health.guard("worker.alive_file"):
                self._path.unlink(missing_ok=True)
