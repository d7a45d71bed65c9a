from pathlib import Path

import pytest
from alert_parts import (
    broker,
    collector,
    health,
    receiver,
    sleeping_broker,
    sleeping_collector,
)

__all__ = ["broker", "collector", "health", "receiver", "sleeping_broker", "sleeping_collector"]


@pytest.fixture(autouse=True)
def _state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outboxes that no test names lie there, and not among the user's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
