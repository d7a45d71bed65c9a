"""The drills of benchmarks/delivery.py, small: a durable broker that is killed, hung and away."""

from __future__ import annotations

from pathlib import Path

import pytest
from delivery import QUICK
from drills.drills import AWAY, DAMAGED, DISK, away, damaged, disk_full, kills


def quiet(name: str, done: int, total: int) -> None:
    """No progress."""


@pytest.mark.live
@pytest.mark.timeout(600)
def test_nothing_accepted_is_missing_after_brokers_and_emitters_were_killed(tmp_path: Path) -> None:
    outcome = kills(QUICK, tmp_path / "o.sqlite", quiet)
    assert (outcome.accepted, outcome.missing) == (QUICK.alerts, 0)


@pytest.mark.live
@pytest.mark.timeout(600)
def test_everything_arrives_after_a_broker_was_away_for_longer_than_a_batch_lives(
    tmp_path: Path,
) -> None:
    (gone,) = (one for one in away(QUICK, tmp_path / "o.sqlite", quiet) if one.state == AWAY)
    assert gone.accepted > 0
    assert gone.missing == 0


@pytest.mark.live
@pytest.mark.timeout(600)
def test_a_full_disk_and_a_damaged_file_leave_nothing_unaccounted_for(tmp_path: Path) -> None:
    full = disk_full(QUICK, tmp_path / "full.sqlite", quiet)
    broken = damaged(QUICK, tmp_path / "broken.sqlite", quiet)
    assert [one.state for one in (full, broken)] == [DISK, DAMAGED]
    assert (full.missing, broken.missing) == (0, 0)
    assert broken.told_lost > 0
