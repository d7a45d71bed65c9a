"""What wakes the thread of a socket: heard once, however often it rang, and never waited for."""

from __future__ import annotations

import select
import threading

from nae_monitor.placement.bell import Bell


def rings(bell: Bell, timeout_s: float = 0.0) -> bool:
    return bool(select.select([bell], [], [], timeout_s)[0])


def test_a_ring_wakes_who_waits_and_is_over_once_noted() -> None:
    bell = Bell()
    assert not rings(bell)
    other = threading.Timer(0.05, bell.ring)
    other.start()
    assert rings(bell, timeout_s=60.0)
    other.join()
    bell.hush()
    assert not rings(bell)
    bell.close()


def test_ringing_never_waits_however_long_nobody_listens() -> None:
    bell = Bell()
    for _ in range(100_000):  # far more than the kernel keeps
        bell.ring()
    bell.hush()
    assert not rings(bell)
    bell.ring()
    assert rings(bell)
    bell.close()


def test_ringing_for_nobody_does_nothing() -> None:
    bell = Bell()
    bell.close()
    bell.ring()
