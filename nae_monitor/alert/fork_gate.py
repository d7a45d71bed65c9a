"""Keeps ``fork`` out of SQLite calls: a child born inside one inherits SQLite's locked mutex.

Such a child would hang in its first SQLite call, for ever. The fork waits for the running call,
at most ``WAIT_S``, so that a stalled disk does not stop the host.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
WAIT_S = 0.5


class _ForkGate:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._is_held = False

    def before(self) -> None:
        self._is_held = self.lock.acquire(timeout=WAIT_S)

    def after_in_parent(self) -> None:
        if self._is_held:
            self.lock.release()

    def after_in_child(self) -> None:
        self.lock = threading.RLock()


_GATE = _ForkGate()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_GATE.before,
        after_in_parent=_GATE.after_in_parent,
        after_in_child=_GATE.after_in_child,
    )


def outside_fork(method: Callable[P, T]) -> Callable[P, T]:
    """Let no ``fork`` of this process happen inside the call."""

    @functools.wraps(method)
    def gated(*args: P.args, **kwargs: P.kwargs) -> T:
        with _GATE.lock:
            return method(*args, **kwargs)

    return gated
