from __future__ import annotations

import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.byte_queue import ByteQueue

STEPS = st.lists(st.one_of(st.integers(0, 60), st.tuples(st.just("take"), st.integers(1, 5))))


@settings(deadline=None)
@given(STEPS)
def test_it_is_first_in_first_out_and_never_holds_more_bytes_than_its_limit(
    steps: list[int | tuple[str, int]],
) -> None:
    queue: ByteQueue[tuple[int, int]] = ByteQueue(100)
    expected: list[tuple[int, int]] = []
    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            taken = queue.take(step[1])
            assert taken == expected[: step[1]]
            del expected[: step[1]]
            continue
        fits = not step or sum(size for _, size in expected) + step <= 100
        assert queue.offer((number, step), step) is fits
        if fits:
            expected.append((number, step))
        assert sum(size for _, size in expected) <= 100
    assert len(queue) == len(expected)
    assert queue.close() == expected


def test_a_closed_queue_refuses_everything() -> None:
    queue: ByteQueue[str] = ByteQueue(100)
    queue.offer("a", 1)
    assert queue.close() == ["a"]
    assert not queue.offer("b", 0)
    assert queue.close() == []


def test_a_wait_ends_with_an_item_a_wake_or_the_time() -> None:
    queue: ByteQueue[str] = ByteQueue(100)
    started_s = time.monotonic()
    queue.wait(0.02)
    assert time.monotonic() - started_s >= 0.02
    queue.wake()
    queue.wait(60.0)  # a wake before the wait counts
    threading.Timer(0.02, queue.offer, ("a", 1)).start()
    queue.wait(60.0)
    assert queue.take(9) == ["a"]
    threading.Timer(0.02, queue.wake).start()
    queue.wait(60.0)
    assert queue.take(9) == []


def test_bytes_are_free_again_once_taken() -> None:
    queue: ByteQueue[str] = ByteQueue(10)
    assert queue.offer("a", 10)
    assert not queue.offer("b", 1)
    assert queue.take(1) == ["a"]
    assert queue.offer("b", 10)


def test_renewed_it_is_empty_and_open() -> None:
    queue: ByteQueue[str] = ByteQueue(10)
    queue.offer("a", 10)
    queue.close()
    queue.renew()
    assert queue.offer("b", 10)
    assert queue.take(9) == ["b"]
