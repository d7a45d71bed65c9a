"""The file by which probes see that a worker takes what comes."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from placement_parts import configuration, make_worker, server, wait_until

from nae_monitor.errors import ConfigurationError
from nae_monitor.health import Health
from nae_monitor.placement.pulse import Pulse
from nae_monitor.testing import ManualClock


def test_it_is_touched_at_most_once_a_second_and_removed_in_the_end(tmp_path: Path) -> None:
    path, clock = tmp_path / "alive", ManualClock()
    pulse = Pulse(path, Health(), clock)
    ages = []
    for _ in range(4):
        pulse.beat()
        ages.append(path.stat().st_mtime)
        os.utime(path, (0, 0))
        clock.advance(0.5)
    assert [bool(age) for age in ages] == [True, False, True, False]
    pulse.end()
    assert not path.exists()


def test_one_that_a_killed_worker_left_does_not_speak_for_the_next(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    path.touch()
    Pulse(path, Health())
    assert not path.exists()


def test_one_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        Pulse(tmp_path / "nowhere" / "alive", Health())


def test_a_disk_that_fails_later_is_counted_and_hurts_nobody(tmp_path: Path) -> None:
    directory, health = tmp_path / "gone", Health()
    directory.mkdir()
    pulse = Pulse(directory / "alive", health)
    directory.rmdir()
    pulse.beat()
    assert health.counters()["failed.worker.alive_file.FileNotFoundError"] == 1


def test_a_worker_is_alive_from_its_first_look_to_its_end(tmp_path: Path) -> None:
    settings, path = configuration(tmp_path), tmp_path / "alive"
    settings = replace(settings, ipc=replace(settings.ipc, connect_s=30.0))
    worker = make_worker(settings, alive_file=path)
    assert not path.exists()
    running = threading.Thread(target=worker.run)
    running.start()
    try:
        with server(settings) as one:
            assert one.one("r1").coverage.judged_tokens == 3
        assert path.exists()
        os.utime(path, (0, 0))
        wait_until(lambda: path.stat().st_mtime)
    finally:
        worker.stop()
        running.join()
    assert not path.exists()
