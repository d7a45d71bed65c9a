"""100,000 generated tokens, decoded, judged, alerted on and recorded: nothing grows with them.

What is kept by design is bounded, and full when the warm-up is over: decodings that may be used
again, requests that are remembered, rows that wait for their file. What comes on top of that, up to
the last token, is held to bounds that one small object a token would break.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import monitor_parts
import pytest
import soak_parts
from placement_parts import D_MODEL, configuration, remote, worker_process
from resident import rss_mib

from nae_monitor.monitor import Monitor
from nae_monitor.settings import CacheSettings, DecodeSettings

TOKENS = int(os.environ.get("NAE_SOAK_TOKENS", "100000"))
WARM_TOKENS, STAGES = TOKENS // 10, 9
CACHED = 64  # decodings, where 4,096 are kept

# Of one class: what the remembered requests hold, were it one a token; all requests are 1,000.
MOST_OBJECTS = soak_parts.REMEMBERED * soak_parts.NEW_TOKENS
# Of our own lines: the rows that wait for their file, at most 4 KiB each, and as much again.
MOST_BYTES = 2 * 4096 * soak_parts.WAITING_ROWS
# Of a process: also what torch, pyarrow and the allocator keep, which settles at some 20; a leak of
# 600 bytes a token would break it.
MOST_RSS_MIB = 48.0

Placement = Callable[[Path], AbstractContextManager[tuple[Monitor, int]]]


@contextmanager
def inline(directory: Path) -> Iterator[tuple[Monitor, int]]:
    """A monitor, and the process that decodes."""
    decode = DecodeSettings(cache=CacheSettings(entries=CACHED))
    monitor = monitor_parts.monitor(directory, decode=decode)
    yield monitor, os.getpid()
    assert monitor.close(60.0)


@contextmanager
def by_ipc(directory: Path) -> Iterator[tuple[Monitor, int]]:
    decode = DecodeSettings(cache=CacheSettings(entries=CACHED))
    settings = configuration(directory, decode=decode)
    with (
        worker_process(settings, prepare=remember_little_for_good) as worker,
        remote(settings) as monitor,
    ):
        yield monitor, worker.pid


def remember_little_for_good() -> None:
    """In a process that only this test uses."""
    soak_parts.remember_little(pytest.MonkeyPatch())


class Progress:
    """Says on the terminal how far a soak is, whatever pytest captures."""

    def __init__(self, name: str, pids: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
        self._name, self._pids, self._capsys = name, pids, capsys
        self._since_s = time.monotonic()

    def tell(self, tokens: int, held: soak_parts.Held | None = None) -> dict[str, float]:
        """Print what there is after ``tokens``; resident MiB by process."""
        rss = {role: rss_mib(pid) for role, pid in self._pids.items()}
        said = [f"{self._name}: {tokens:,} tokens, {time.monotonic() - self._since_s:.0f} s"]
        said += [f"{role} {mib:.1f} MiB" for role, mib in rss.items()]
        if held is not None:
            said.append(
                f"{sum(held.objects.values()):,} objects, {held.size_bytes:,} bytes of ours"
            )
        with self._capsys.disabled():
            print("\n" + "; ".join(said), end="", flush=True)
        return rss


def soak(monitor: Monitor, model: Any, progress: Progress) -> tuple[soak_parts.Growth, float]:
    """What was held more at the end than after the warm-up, and the most MiB of one process."""
    tracemalloc.start()
    try:
        progress.tell(0)
        soak_parts.generate_tokens(monitor, model, WARM_TOKENS, "warm")
        before = soak_parts.held()
        rss_before = progress.tell(WARM_TOKENS, before)
        for stage in range(STAGES):
            soak_parts.generate_tokens(monitor, model, WARM_TOKENS, f"soak-{stage}")
            # Before the snapshot, which takes memory of its own.
            rss = progress.tell(WARM_TOKENS * (stage + 2))
        after = soak_parts.held()
        progress.tell(WARM_TOKENS * (STAGES + 1), after)
    finally:
        tracemalloc.stop()
    grown = soak_parts.Growth(after.objects - before.objects, after.size_bytes - before.size_bytes)
    return grown, max(rss[role] - rss_before[role] for role in rss)


@pytest.mark.live
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("placement", [inline, by_ipc])
def test_nothing_grows_with_a_hundred_thousand_tokens(
    placement: Placement,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    soak_parts.remember_little(monkeypatch)
    width = D_MODEL if placement is by_ipc else monitor_parts.D_MODEL
    model = monitor_parts.target(width)
    with placement(tmp_path) as (monitor, decoding_pid):
        pids = {"serving": os.getpid(), "decoding": decoding_pid}
        name = "inline" if placement is inline else "ipc"
        grown, rss_mib_more = soak(monitor, model, Progress(name, pids, capsys))
        assert monitor.health.counters()["tokens.screened"] > TOKENS
    assert {name for name, more in grown.objects.items() if more > MOST_OBJECTS} == set()
    assert grown.size_bytes < MOST_BYTES
    assert rss_mib_more < MOST_RSS_MIB
