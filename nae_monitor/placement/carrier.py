"""What a serving process needs of a way to its workers, whatever it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from nae_monitor.placement.frame import Frame, Kind


@dataclass(frozen=True, slots=True)
class Captured:
    """What a serving process captures, for workers to see whether it is theirs."""

    model: str
    layer: int  # rows are hidden_states[layer]
    d_model: int


class Destination(Protocol):
    """Where the frames of a turn go. What was told in one life is unknown in the next."""

    @property
    def life(self) -> int:
        """Counts up each time that a worker begins to listen."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a worker listens."""
        ...

    @property
    def source(self) -> str:
        """Whose ledgers come from there."""
        ...

    @property
    def answers(self) -> bool:
        """Whether outcomes and orders come back from there."""
        ...

    def send(self, kind: Kind, header: dict[str, Any], body: bytes = b"", key: str = "") -> bool:
        """Hand a frame on without waiting; frames of one ``key`` stay in order.

        Returns:
            False where there is no room.

        Raises:
            FrameError: it is too long.
        """
        ...


class Carrier(Protocol):
    """Ways to workers; for the one thread that calls :meth:`open`."""

    def open(self) -> None:
        """Connect, or begin to."""
        ...

    def close(self) -> None:
        """Say goodbye and disconnect; within a second."""
        ...

    def poll(self) -> list[tuple[Destination, Frame]]:
        """Look after the connections; what came in about turns, in order."""
        ...

    def choose(self, key: str) -> Destination | None:
        """Where turns of ``key`` go, the same one while it is there; None where nobody listens."""
        ...

    @property
    def is_settling(self) -> bool:
        """Whether it was opened just now and may yet find a worker; rows can wait for that."""
        ...

    def faults(self) -> dict[str, str]:
        """What does not work now, and why, by a name of it; all names, "" for what works."""
        ...

    def states(self) -> dict[str, str]:
        """Of each worker or broker: ready or not, and why."""
        ...

    def is_answered(self) -> bool:
        """Whether there is nothing more to wait for."""
        ...

    def unsafe(self) -> list[str]:
        """What makes it unsafe to connect at all."""
        ...
