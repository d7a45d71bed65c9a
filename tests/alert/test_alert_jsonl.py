from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alert_parts import make_alert, make_policy, wait_until

from nae_monitor.alert import build_sinks
from nae_monitor.alert.event import occurrence_id
from nae_monitor.alert.jsonl import JsonlSink
from nae_monitor.alert.tail import JsonlTail
from nae_monitor.errors import ConfigurationError, InputDataError
from nae_monitor.health import Health
from nae_monitor.records import Alert
from nae_monitor.settings import PrivacySettings
from nae_monitor.sink_settings import AlertSettings, JsonlSettings, SinkSettings


def sink_at(path: Path, health: Health, **options: Any) -> JsonlSink:
    return JsonlSink(JsonlSettings(str(path), **options), make_policy(), health)


def test_writes_one_readable_event_a_line_in_order(tmp_path: Path, health: Health) -> None:
    path = tmp_path / "deep" / "alerts.jsonl"
    path.parent.mkdir()
    sink = sink_at(path, health)
    alerts = [make_alert(n) for n in range(120)]
    for alert in alerts:
        sink.emit(alert)
    assert sink.close(10)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["data"]["unmapped"]["nae.sequence"] for line in lines] == list(range(120))
    assert [alert.id for alert in JsonlTail(path)] == [occurrence_id(a) for a in alerts]
    assert sink.stats() == {"accepted": 120, "delivered": 120, "pending": 0}


@pytest.mark.parametrize("fsync", ["never", "interval", "always"])
def test_every_fsync_policy_delivers_and_appends(
    tmp_path: Path, health: Health, fsync: str
) -> None:
    path = tmp_path / "alerts.jsonl"
    for n in range(2):
        sink = sink_at(path, health, fsync=fsync)
        sink.emit(make_alert(n))
        assert sink.close(10)
    assert len(list(JsonlTail(path))) == 2


def test_rotation_keeps_the_newest_files_and_every_line_whole(
    tmp_path: Path, health: Health
) -> None:
    path = tmp_path / "alerts.jsonl"
    sink = sink_at(path, health, rotate_bytes=6000, keep_files=2)
    for n in range(60):
        sink.emit(make_alert(n))
    assert sink.close(10)
    files = [path.with_name("alerts.jsonl.2"), path.with_name("alerts.jsonl.1"), path]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(0 < file.stat().st_size <= 6000 for file in files)
    read = [a.data["unmapped"]["nae.sequence"] for file in files for a in JsonlTail(file)]
    assert read == list(range(60 - len(read), 60))


def test_a_line_torn_by_a_crash_spoils_no_later_line(tmp_path: Path, health: Health) -> None:
    path = tmp_path / "alerts.jsonl"
    first = sink_at(path, health)
    first.emit(make_alert(0))
    assert first.close(10)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    torn = JsonlTail(path)
    assert (len(list(torn)), torn.skipped) == (1, 1)
    second = sink_at(path, health)
    second.emit(make_alert(1))
    assert second.close(10)
    tail = JsonlTail(path)
    assert [a.data["unmapped"]["nae.sequence"] for a in tail] == [0, 1]
    assert tail.skipped == 1


def test_a_file_removed_or_rotated_by_others_is_opened_anew(tmp_path: Path, health: Health) -> None:
    path = tmp_path / "alerts.jsonl"
    sink = sink_at(path, health)
    sink.emit(make_alert(0))
    wait_until(lambda: sink.stats()["delivered"] == 1)
    path.rename(tmp_path / "moved")
    sink.emit(make_alert(1))
    assert sink.close(10)
    assert len(list(JsonlTail(path))) == 1


def test_a_full_device_is_counted_and_alerts_wait(health: Health) -> None:
    sink = sink_at(Path("/dev/full"), health, queue_events=3)
    sink.emit(make_alert(0))
    wait_until(lambda: sink.stats().get("retried.OSError"))
    for n in range(1, 200):
        sink.emit(make_alert(n))
    accepted = sink.stats()["accepted"]
    # For a moment the thread has one in hand, neither on the queue nor among those it holds.
    wait_until(lambda: sink.stats()["pending"] == accepted)
    stats = sink.stats()
    assert stats["delivered"] == 0
    assert stats["accepted"] == accepted > 0
    assert stats["dropped.queue_full"] == 200 - stats["accepted"]
    assert health.counters()["alert.jsonl.dropped.queue_full"] == stats["dropped.queue_full"]
    assert not sink.close(0.2)


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file of this process may grow beyond 5000 bytes: a write is cut short, then fails."""
    limit_bytes = 5000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    yield limit_bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_up_tears_no_line_and_delivers_once_there_is_room(
    tmp_path: Path, health: Health, small_files: int
) -> None:
    path = tmp_path / "alerts.jsonl"
    sink = sink_at(path, health)
    for n in range(12):
        sink.emit(make_alert(n))
    wait_until(lambda: sink.stats().get("retried.OSError"))
    assert path.read_bytes() == b"" or path.read_bytes().endswith(b"\n")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert sink.close(20)
    tail = JsonlTail(path)
    assert [a.data["unmapped"]["nae.sequence"] for a in tail] == list(range(12))
    assert tail.skipped == 0


def test_a_directory_lost_at_run_time_is_counted_and_alerts_wait(
    tmp_path: Path, health: Health
) -> None:
    path = tmp_path / "alerts" / "alerts.jsonl"
    path.parent.mkdir()
    sink = sink_at(path, health)
    sink.emit(make_alert(0))
    wait_until(lambda: sink.stats()["delivered"] == 1)
    path.parent.rename(tmp_path / "gone")
    sink.emit(make_alert(1))
    wait_until(lambda: sink.stats().get("retried.FileNotFoundError"))
    (tmp_path / "gone").rename(path.parent)
    assert sink.close(20)
    assert len(list(JsonlTail(path))) == 2


def _emit_from_a_process(path: str, first: int) -> None:
    sink = sink_at(Path(path), Health(), rotate_bytes=20_000, keep_files=50)
    for n in range(first, first + 60):
        sink.emit(make_alert(n))
    assert sink.close(30)


def test_processes_that_share_a_file_lose_and_tear_nothing(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_emit_from_a_process, args=(str(path), first)) for first in (0, 1000)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    tails = [JsonlTail(file) for file in tmp_path.iterdir()]
    read = [alert.id for tail in tails for alert in tail]
    assert (len(read), len(set(read))) == (120, 120)
    assert not sum(tail.skipped for tail in tails)


def test_a_forked_child_writes_through_the_sink_it_inherited(
    tmp_path: Path, health: Health
) -> None:
    path = tmp_path / "alerts.jsonl"
    sink = sink_at(path, health)
    sink.emit(make_alert(0))
    wait_until(lambda: sink.stats()["delivered"] == 1)

    def child() -> None:
        sink.emit(make_alert(1))
        assert sink.stats()["accepted"] == 1
        assert sink.close(10)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    sink.emit(make_alert(2))
    assert sink.close(10)
    assert len(list(JsonlTail(path))) == 3


def test_an_unwritable_path_stops_the_start(tmp_path: Path, health: Health) -> None:
    (tmp_path / "file").write_text("")
    options = JsonlSettings(str(tmp_path / "file" / "alerts.jsonl"))
    settings = AlertSettings((SinkSettings("jsonl", options),))
    with pytest.raises(ConfigurationError, match=r"alert.sinks\[0\].jsonl: cannot write"):
        build_sinks(settings, PrivacySettings(), health)


def test_alerts_after_close_are_dropped_and_counted(tmp_path: Path, health: Health) -> None:
    sink = sink_at(tmp_path / "alerts.jsonl", health)
    assert sink.close(1)
    sink.emit(make_alert(0))
    assert sink.stats()["dropped.closed"] == 1
    assert sink.close(1)


def test_a_file_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"none.jsonl"):
        list(JsonlTail(tmp_path / "none.jsonl"))


def stamped(number: int, age_s: float) -> Alert:
    now_ns = time.time_ns() - round(age_s * 1e9)
    return replace(make_alert(number), time_unix_ns=now_ns)


def test_a_file_whose_first_alert_is_too_old_is_rotated_over_restarts_too(
    tmp_path: Path, health: Health
) -> None:
    path = tmp_path / "alerts.jsonl"
    for number, age_s in enumerate([7200.0, 10.0, 5.0]):
        sink = sink_at(path, health, rotate_age_s=3600)
        sink.emit(stamped(number, age_s))
        assert sink.close(10)
    found = [
        [a.data["unmapped"]["nae.sequence"] for a in JsonlTail(file)]
        for file in (tmp_path / "alerts.jsonl.1", path)
    ]
    assert found == [[0], [1, 2]]


def test_an_empty_file_is_never_too_old(tmp_path: Path, health: Health) -> None:
    path = tmp_path / "alerts.jsonl"
    path.write_text("")
    os.utime(path, (0, 0))
    sink = sink_at(path, health, rotate_age_s=1)
    sink.emit(stamped(0, 0.0))
    assert sink.close(10)
    assert [file.name for file in tmp_path.iterdir()] == ["alerts.jsonl"]


def test_a_file_that_begins_with_something_else_is_as_old_as_its_last_change(
    tmp_path: Path, health: Health
) -> None:
    path = tmp_path / "alerts.jsonl"
    path.write_text("half a line\n")
    os.utime(path, (0, 0))
    sink = sink_at(path, health, rotate_age_s=60)
    sink.emit(stamped(0, 0.0))
    assert sink.close(10)
    assert (tmp_path / "alerts.jsonl.1").read_text() == "half a line\n"
