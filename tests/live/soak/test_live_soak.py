"""100,000 generated tokens, decoded, judged, alerted on and recorded: nothing grows with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import monitor_parts
import pytest
import soak_parts
from placement_parts import D_MODEL, configuration, remote, worker_process

from nae_monitor.monitor import Monitor

TOKENS, WARM_TOKENS = 100_000, 10_000
Placement = Callable[[Path], AbstractContextManager[Monitor]]


@contextmanager
def inline(directory: Path) -> Iterator[Monitor]:
    monitor = monitor_parts.monitor(directory)
    yield monitor
    assert monitor.close(60.0)


@contextmanager
def by_ipc(directory: Path) -> Iterator[Monitor]:
    settings = configuration(directory)
    with worker_process(settings), remote(settings) as monitor:
        yield monitor


@pytest.mark.live
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("placement", [inline, by_ipc])
def test_nothing_grows_with_a_hundred_thousand_tokens(
    placement: Placement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soak_parts.remember_little(monkeypatch)
    width = D_MODEL if placement is by_ipc else monitor_parts.D_MODEL
    model = monitor_parts.target(width)
    with placement(tmp_path) as monitor:
        monitor.health._ledger_limit = soak_parts.REMEMBERED
        grown = soak_parts.growth(monitor, model, WARM_TOKENS, TOKENS)
        assert monitor.health.counters()["tokens.screened"] > TOKENS
    # Findings of the few requests that are remembered, and rows that wait to be written.
    print(f"{grown.size_bytes} bytes, {sum(grown.objects.values())} objects")
    assert sum(grown.objects.values()) < TOKENS // 50
    assert grown.size_bytes < 10 * TOKENS
