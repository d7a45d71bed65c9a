"""Lets effects through until it is shut, and tells when the last of them is over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Between a thread that may be late and things that get closed under it."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Open, with a lock of its own: for a forked child."""
        self._lock = threading.Lock()
        self._shut = False

    @property
    def is_shut(self) -> bool:
        """A glance, to save work; only :meth:`passing` is binding."""
        return self._shut

    @contextmanager
    def passing(self) -> Iterator[bool]:
        """Yields whether the gate is open; it stays so until the block ends."""
        with self._lock:
            yield not self._shut

    def shut(self, wait_s: float) -> bool:
        """Let nothing through from now on.

        Returns:
            False where something was still passing after ``wait_s``: what it uses must not be
            closed under it.
        """
        self._shut = True
        quiet = self._lock.acquire(timeout=max(0.0, wait_s))
        if quiet:
            self._lock.release()
        return quiet
