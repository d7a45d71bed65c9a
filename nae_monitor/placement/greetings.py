"""How a serving process and a worker take each other on, or do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nae_monitor.placement.fields import Fields
from nae_monitor.placement.frame import Frame

MAX_WIDTH = 65_536  # of a vector


@dataclass(frozen=True, slots=True)
class Hello:
    """A serving process presents itself."""

    process: str  # unique to its life
    model: str
    layer: int
    d_model: int

    def header(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "process": self.process,
            "model": self.model,
            "layer": self.layer,
            "d_model": self.d_model,
        }

    @classmethod
    def read(cls, frame: Frame) -> Hello:
        """From a frame; FrameError where it is not one."""
        fields = Fields(frame.header)
        return cls(
            fields.text("process", 64),
            fields.text("model"),
            fields.integer("layer", 0, 10_000),
            fields.integer("d_model", 1, MAX_WIDTH),
        )


@dataclass(frozen=True, slots=True)
class Welcome:
    """A worker takes a serving process on."""

    worker: str  # unique to its life
    nla_id: str

    def header(self) -> dict[str, Any]:
        """As JSON."""
        return {"worker": self.worker, "nla_id": self.nla_id}

    @classmethod
    def read(cls, frame: Frame) -> Welcome:
        """From a frame; FrameError where it is not one."""
        fields = Fields(frame.header)
        return cls(fields.text("worker", 64), fields.text("nla_id"))


def read_reason(frame: Frame) -> str:
    """Why the sender of REFUSED refuses."""
    return Fields(frame.header).text("reason")
