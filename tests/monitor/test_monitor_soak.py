"""What is held of a request ends with it; 100,000 tokens of the same are in tests/live/soak."""

from __future__ import annotations

from pathlib import Path

import monitor_parts
import pytest
import soak_parts

from nae_monitor.settings import RecordSettings

CACHED = {"nae_monitor.decode.cache._Entry", "nae_monitor.records.Decoding"}  # bounded, not full


def test_nothing_that_the_package_holds_grows_with_the_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soak_parts.remember_little(monkeypatch)
    monitor = monitor_parts.monitor(tmp_path, rules=monitor_parts.NEVER, record=RecordSettings())
    grown = soak_parts.growth(monitor, monitor_parts.target(), 800, 1200)
    assert monitor.close(30.0)
    # A few: what a thread had in hand. One a request would be 12, one a token 1,200.
    more = {name for name, amount in grown.objects.items() if amount > 8}
    assert more <= CACHED
    assert grown.size_bytes < 96 * 1024
