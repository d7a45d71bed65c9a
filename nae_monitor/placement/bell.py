"""Wakes the one thread that may touch a ZeroMQ socket."""

from __future__ import annotations

import socket
from contextlib import suppress


class Bell:
    """Any thread rings; the thread that polls this beside its socket wakes."""

    def __init__(self) -> None:
        self._inside, self._outside = socket.socketpair()
        self._inside.setblocking(False)
        self._outside.setblocking(False)

    def fileno(self) -> int:
        """Readable while it rings."""
        return self._inside.fileno()

    def ring(self) -> None:
        """Never waits."""
        with suppress(OSError):  # full: it rings already; closed: nobody listens any more
            self._outside.send(b"!")

    def hush(self) -> None:
        """Take note of every ring so far."""
        with suppress(BlockingIOError):
            while self._inside.recv(4096):
                pass

    def close(self) -> None:
        """Ring no more."""
        self._inside.close()
        self._outside.close()
