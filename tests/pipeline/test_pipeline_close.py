"""The end: everything is accounted for, and nothing is touched after it."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pipeline_parts import D_MODEL, LAYER, Bench, ledger_faults, wait_until

from nae_monitor.alert import AlertFolder
from nae_monitor.errors import AbandonedError
from nae_monitor.recording import Recording, RecordingWriter
from nae_monitor.records import VerdictState

Make = Callable[..., Bench]


def writer_in(directory: Path) -> Callable[[], RecordingWriter]:
    """Opens a recording ``0``, then ``1``, and so on."""

    def open_writer() -> RecordingWriter:
        return RecordingWriter(
            directory / str(len(list(directory.iterdir()))),
            manifest={"model": "bench", "layer": LAYER},
            d_model=D_MODEL,
            content="full",
        )

    return open_writer


def test_closing_works_off_the_queue_first(bench: Make, tmp_path: Path) -> None:
    here = bench(open_recorder=writer_in(tmp_path))
    here.start("r", prompt_tokens=40)
    here.rows("r", range(40))
    here.finish("r")
    assert here.pipeline.close(30.0) is True
    assert here.verdict("r").state is VerdictState.CLEAN
    assert len(list(Recording.open(tmp_path / "0").activations())) == 40


def test_closing_twice_changes_nothing_and_says_the_same(bench: Make) -> None:
    here = bench()
    here.one("r")
    assert here.pipeline.close(10.0) is here.pipeline.close(10.0) is True
    late = bench()
    late.decoder.released.clear()
    late.start("r")
    late.rows("r", [0])
    assert late.pipeline.close(0.0) is late.pipeline.close(5.0) is False
    assert late.counter("dropped.shutdown") == 1


def test_a_decode_under_way_at_the_deadline_is_given_up_and_nothing_is_called_failed(
    bench: Make,
) -> None:
    here = bench()
    decoder = here.decoder
    decoder.released.clear()

    def abandon() -> bool:
        decoder.faults = [AbandonedError("nobody waits")]
        decoder.released.set()
        return True

    decoder.abandon = abandon  # type: ignore[method-assign]
    here.start("r")
    here.rows("r", [0, 1])
    here.finish("r")
    assert decoder.entered.wait(120)
    assert here.pipeline.close(0.05) is False
    thread = here.pipeline._thread
    assert thread is not None
    thread.join(120)
    assert not thread.is_alive()
    assert here.verdict("r").coverage.dropped_tokens == {"shutdown": 2}
    assert not here.blind_alerts()
    assert not [name for name in here.health.counters() if name.startswith("failed.")]


def test_what_is_left_at_the_deadline_is_counted_recorded_and_undecided(
    bench: Make, tmp_path: Path
) -> None:
    here = bench(open_recorder=writer_in(tmp_path))
    here.decoder.released.clear()
    here.start("stuck")
    here.rows("stuck", [0, 1])
    here.finish("stuck")
    assert here.decoder.entered.wait(120)
    here.start("queued", prompt_tokens=9)
    here.rows("queued", range(9))
    here.finish("queued")
    here.start("unfinished")
    assert here.pipeline.close(0.05) is False
    for name, lost in (("stuck", 2), ("queued", 9)):
        verdict = here.verdict(name)
        assert verdict.state is VerdictState.UNDECIDED
        assert verdict.coverage.dropped_tokens == {"shutdown": lost}
        assert not ledger_faults(verdict.coverage)
    assert "the monitor closed before it finished (1 times)" in here.verdict("unfinished").reasons
    recorded = Recording.open(tmp_path / "0")
    assert recorded.complete
    assert [row.dropped_reason for row in recorded.activations()] == ["shutdown"] * 11


def test_a_decode_that_ends_after_the_deadline_touches_nothing(bench: Make, tmp_path: Path) -> None:
    seen: list[Any] = []
    here = bench(open_recorder=writer_in(tmp_path), observer=lambda *row: seen.append(row))
    here.decoder.released.clear()
    here.start("r")
    here.rows("r", [0], coordinate=0)
    here.finish("r")
    assert here.decoder.entered.wait(120)
    assert here.pipeline.close(0.0) is False
    files = {path: path.read_bytes() for path in (tmp_path / "0").iterdir()}
    counters = dict(here.health.counters())
    verdict = here.verdict("r")
    here.decoder.released.set()
    thread = here.pipeline._thread
    assert thread is not None
    thread.join(20.0)
    assert not thread.is_alive()
    assert {path: path.read_bytes() for path in (tmp_path / "0").iterdir()} == files
    assert dict(here.health.counters()) == counters
    assert here.verdict("r") == verdict
    assert (seen, here.sink.alerts, here.judge.calls) == ([], [], 0)


def test_alerts_of_unfinished_requests_go_out_at_the_end(bench: Make) -> None:
    here = bench()
    here.start("r")
    here.rows("r", [0], coordinate=0)
    wait_until(lambda: here.counter("tokens.judged") == 1)
    assert here.pipeline.close(10.0) is True
    assert [alert.rule_name for alert in here.sink.alerts] == ["rule"]
    assert here.verdict("r").state is VerdictState.ALERT


def test_whoever_waits_for_a_verdict_is_woken_at_the_end(bench: Make) -> None:
    here = bench()
    here.start("r")
    got: list[Any] = []
    waiting = [
        threading.Thread(target=lambda name=name: got.append(here.verdict(name, wait_s=120.0)))
        for name in ("r", "never")
    ]
    for thread in waiting:
        thread.start()
    here.pipeline.close(5.0)
    for thread in waiting:
        thread.join(20.0)
    assert [verdict.state for verdict in got] == [VerdictState.UNDECIDED] * 2


def test_rows_after_the_end_are_refused_and_counted(bench: Make) -> None:
    here = bench()
    here.start("r")
    here.pipeline.close(5.0)
    here.rows("r", [0, 1])
    here.finish("r")
    here.start("s")
    here.rows("s", [0])
    assert here.counter("dropped.closed") == 3
    assert here.verdict("s", wait_s=0.0).state is VerdictState.UNDECIDED


def test_rows_that_arrive_while_it_closes_are_never_lost_silently(bench: Make) -> None:
    here = bench()
    stop = threading.Event()

    def serve() -> None:
        number = 0
        while not stop.is_set():
            here.start(f"r{number}")
            here.rows(f"r{number}", [0, 1, 2])
            here.finish(f"r{number}")
            number += 1

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: here.counter("tokens.judged") > 50)
    here.pipeline.close(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    counters = here.health.counters()
    dropped = {n.removeprefix("dropped."): c for n, c in counters.items() if "dropped." in n}
    screened = counters["tokens.screened"]
    early = dropped.pop("closed", 0) + dropped.pop("unknown_request", 0)
    assert counters["tokens.seen"] == screened + early
    assert screened == counters["tokens.sampled"]
    assert counters["tokens.sampled"] == counters["tokens.judged"] + sum(dropped.values())


def test_an_interrupt_in_the_middle_of_closing_leaves_it_to_be_closed_again(bench: Make) -> None:
    here = bench()
    here.decoder.released.clear()
    here.start("r")
    here.rows("r", [0])
    here.finish("r")
    assert here.decoder.entered.wait(120)
    main = threading.main_thread().ident
    interrupt = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        here.pipeline.close(60.0)
    here.decoder.released.set()
    assert here.pipeline.close(20.0) is True
    assert here.verdict("r").state is VerdictState.CLEAN


@contextmanager
def lock_held_elsewhere(lock: Any) -> Iterator[None]:
    """Another thread holds ``lock``; in a forked child nobody will ever free it."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(120)
    try:
        yield
    finally:
        done.set()
        thread.join()


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked child; 0 if it returned, 1 if it raised, -14 if it hung."""
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            work()
        except BaseException:  # noqa: BLE001 - pytest must not go on in the child
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_monitors_afresh_and_leaves_its_parents_recording_alone(
    bench: Make, tmp_path: Path
) -> None:
    here = bench(open_recorder=writer_in(tmp_path))
    here.one("before")
    here.decoder.released.clear()
    here.start("parent")
    here.rows("parent", [0])
    here.finish("parent")
    assert here.decoder.entered.wait(120)

    def child() -> None:
        here.decoder.released = threading.Event()
        here.decoder.released.set()
        assert here.one("child").state is VerdictState.CLEAN
        assert here.verdict("parent", wait_s=0.0).state is VerdictState.UNDECIDED
        assert here.pipeline.close(20.0) is True

    with lock_held_elsewhere(here.pipeline._requests._changed):
        assert in_child(child) == 0
    here.decoder.released.set()
    assert here.verdict("parent").state is VerdictState.CLEAN
    assert here.pipeline.close(20.0) is True
    mine, childs = (Recording.open(tmp_path / name) for name in ("0", "1"))
    assert {r.request.request_id for r in mine.requests()} == {"before", "parent"}
    assert {r.request.request_id for r in childs.requests()} == {"child"}
    assert mine.complete
    assert childs.complete


def test_a_judged_row_is_on_record_even_where_its_alert_cannot_be_made(
    bench: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(AlertFolder, "add", broken)
    here = bench(open_recorder=writer_in(tmp_path))
    here.start("r")
    here.rows("r", [0], coordinate=0)
    here.finish("r")
    assert here.verdict("r").state is VerdictState.ALERT
    here.pipeline.close(30.0)
    assert len(list(Recording.open(tmp_path / "0").activations())) == 1
    assert here.counter("failed.pipeline.RuntimeError") == 1
