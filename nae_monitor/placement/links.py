"""All workers of a serving process: which of them a turn goes to."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from nae_monitor.errors import ConfigurationError
from nae_monitor.health import Health
from nae_monitor.placement.carrier import Captured, Destination
from nae_monitor.placement.frame import Frame
from nae_monitor.placement.greetings import Hello
from nae_monitor.placement.link import Link, LinkState
from nae_monitor.placement.private import check_private
from nae_monitor.placement_settings import IpcSettings, socket_path

IO_THREADS = 1


class Links:
    """Workers over ZeroMQ. A key's worker is the one of the highest hash among those there."""

    def __init__(
        self, captured: Captured, settings: IpcSettings, health: Health, clock: Callable[[], float]
    ) -> None:
        self._captured = captured
        self._settings = settings
        self._health = health
        self._clock = clock
        self._context: zmq.Context[Any] | None = None
        self.links: Sequence[Link] = self._new()

    def _new(self) -> list[Link]:
        known = self._captured
        hello = Hello(uuid.uuid4().hex, known.model, known.layer, known.d_model)
        return [
            Link(address, hello, self._settings, self._health, self._clock)
            for address in self._settings.addresses
        ]

    def open(self) -> None:
        """As :class:`Carrier`; also for a forked child, which leaves its parent's alone."""
        if self._context is not None:
            self.links = self._new()
        self._context = zmq.Context(IO_THREADS)
        for link in self.links:
            link.open(self._context)

    def close(self) -> None:
        """As :class:`Carrier`."""
        for link in self.links:
            link.close()
        if self._context is not None:
            self._context.term()  # within the sockets' linger

    def poll(self) -> list[tuple[Destination, Frame]]:
        """As :class:`Carrier`."""
        return [(link, frame) for link in self.links for frame in link.poll()]

    def choose(self, key: str) -> Destination | None:
        """As :class:`Carrier`."""
        ready = [link for link in self.links if link.is_ready]
        return max(ready, key=lambda link: _weight(key, link.endpoint), default=None)

    @property
    def is_settling(self) -> bool:
        """As :class:`Carrier`."""
        ready = any(link.is_ready for link in self.links)
        return not ready and any(link.is_fresh for link in self.links)

    def faults(self) -> dict[str, str]:
        """As :class:`Carrier`."""
        found: dict[str, str] = {}
        for number, link in enumerate(self.links):
            if not link.is_fresh:
                name = f"ipc.worker-{number}"
                found[name] = link.why if link.state is LinkState.AWAY else ""
                found[f"{name}.refused"] = link.why if link.state is LinkState.REFUSED else ""
        return found

    def states(self) -> dict[str, str]:
        """Of each worker: ready, away or refused, and why."""
        return {
            link.endpoint: f"{link.state}: {link.why}" if link.why else str(link.state)
            for link in self.links
        }

    def is_answered(self) -> bool:
        """Whether each worker is there or has refused."""
        return all(link.state is not LinkState.AWAY for link in self.links)

    def unsafe(self) -> list[str]:
        """Directories of sockets that others could put theirs into, and why."""
        found: list[str] = []
        for address in self._settings.addresses:
            path = socket_path(address)
            if path is not None and path.parent.exists():
                try:
                    check_private(path.parent)
                except ConfigurationError as error:
                    found.append(str(error))
        return found


def _weight(key: str, endpoint: str) -> bytes:
    """Of a worker for a key: rendezvous hashing, so that one that goes moves its own keys alone."""
    return hashlib.blake2b(f"{key}\0{endpoint}".encode("utf-8", "replace"), digest_size=8).digest()
