"""What the outbox keeps, in which order it lets go, and what it does about foreign files."""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alert_parts import CANARIES, entry, make_policy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nae_monitor.alert.event_rewriting import narrowed
from nae_monitor.alert.outbox import REJECTED_SHARE, Outbox
from nae_monitor.alert.outbox_file import (
    APPLICATION_ID,
    INSERT,
    SCHEMA_VERSION,
    open_database,
)
from nae_monitor.alert.outbox_fresh import FreshRows
from nae_monitor.alert.outbox_rows import Entry, packed, ranges, row_of

MIB = 1024 * 1024
OLD_TABLE = """CREATE TABLE {name} (row_id INTEGER PRIMARY KEY AUTOINCREMENT, {more}
severity INTEGER NOT NULL, key BLOB NOT NULL, headers TEXT NOT NULL, value BLOB NOT NULL,
added_unix_ns INTEGER NOT NULL {topic})"""


def small(severity: int, size_bytes: int = 100, name: str = "k") -> Entry:
    """An entry whose row is ``size_bytes`` large."""
    return Entry(severity, name.encode(), [], b"v" * (size_bytes - 64 - 2 - len(name)))


def ids(outbox: Outbox) -> list[int]:
    return [row.row_id for row in outbox.after(0, 10_000)]


def test_a_full_outbox_lets_the_lowest_severity_go_first_and_never_what_is_on_the_wire(
    tmp_path: Path,
) -> None:
    outbox = Outbox(tmp_path / "o.sqlite", 300)
    assert outbox.add([small(1), small(4), small(1)]) == 0
    assert outbox.add([small(4)], keep={1}) == 1
    assert ids(outbox) == [1, 2, 4]
    assert outbox.add([small(1)], keep={1, 2, 4}) == 1  # the new one: all others are on the wire
    assert (ids(outbox), outbox.events, outbox.size_bytes) == ([1, 2, 4], 3, 300)
    outbox.close()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(80, 400)), max_size=6), max_size=8)
)
def test_what_stays_is_what_a_naive_outbox_keeps(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]]
) -> None:
    limit_bytes = 1000
    outbox = Outbox(tmp_path_factory.mktemp("o") / "o.sqlite", limit_bytes)
    kept: list[tuple[int, int, int]] = []  # severity, number, size
    number = gone = 0
    for batch in batches:
        gone += outbox.add([small(*one) for one in batch])
        for severity, size_bytes in batch:
            number += 1
            kept.append((severity, number, size_bytes))
        while sum(one[2] for one in kept) > limit_bytes:
            kept.remove(min(kept))
    assert ids(outbox) == sorted(one[1] for one in kept)
    assert outbox.size_bytes == sum(one[2] for one in kept)
    assert gone == number - len(kept)
    outbox.close()


def test_counts_are_those_of_the_file_whatever_was_added_deleted_and_refused(
    tmp_path: Path,
) -> None:
    outbox = Outbox(tmp_path / "o.sqlite", MIB)
    outbox.add([small(n % 5) for n in range(10)])
    outbox.add([small(1)], delete=[1, 2, 99])
    outbox.reject(3, "TooLarge", small(2, 150))
    counted = outbox.events, outbox.size_bytes
    outbox.close()
    again = Outbox(tmp_path / "o.sqlite", MIB)
    assert (again.events, again.size_bytes) == counted == (9, 950)
    assert again.restore_rejected() == 1
    assert again.events == 10
    again.close()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.lists(st.integers(0, 4), max_size=5)),
            st.tuples(st.just("delete"), st.lists(st.integers(1, 40), max_size=5)),
            st.tuples(st.just("after"), st.integers(0, 30)),
            st.tuples(st.just("reject"), st.integers(1, 30)),
            st.tuples(st.just("elsewhere"), st.integers(0, 4)),
        ),
        max_size=25,
    )
)
def test_what_comes_next_is_what_the_file_says_whoever_wrote_it(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("o") / "o.sqlite"
    outbox = Outbox(path, 1000)
    with contextlib.closing(open_database(path)) as other:
        for kind, what in steps:
            if kind == "add":
                outbox.add([small(severity) for severity in what])
            elif kind == "delete":
                outbox.add([], delete=what)
            elif kind == "reject":
                outbox.reject(what, "test", small(2))
            elif kind == "elsewhere":  # as `alerts resend` does
                with other:
                    other.execute(INSERT, packed(small(what), 1))
            cursor = what if kind == "after" else 0
            found = other.execute(
                "SELECT row_id, severity, size_bytes FROM pending WHERE row_id > ? ORDER BY row_id",
                (cursor,),
            ).fetchall()
            rows = outbox.after(cursor, 100)
            assert [(row.row_id, row.severity, row.size_bytes) for row in rows] == found
    outbox.close()


def test_new_rows_are_at_hand_up_to_a_bound_and_beyond_it_the_file_is_asked() -> None:
    fresh = FreshRows(most_bytes=250)
    rows = [row_of(number, small(1), 100) for number in range(7, 11)]
    fresh.committed(rows, ())
    assert fresh.after(7, 10) is None
    assert fresh.after(8, 10) == rows[2:]
    assert fresh.after(9, 10) == rows[3:]
    fresh.forget()
    assert fresh.after(9, 10) is None


@given(st.sets(st.integers(1, 60)))
def test_runs_of_ids_are_the_ids(row_ids: set[int]) -> None:
    runs = list(ranges(row_ids))
    assert [i for first, last in runs for i in range(first, last + 1)] == sorted(row_ids)
    assert all(later[0] > run[1] + 1 for run, later in itertools.pairwise(runs))


def test_refused_events_are_bounded_and_the_newest_stay(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.sqlite", 4000)
    outbox.add([small(1) for _ in range(20)])
    gone = sum(outbox.reject(row_id, "no") for row_id in range(1, 21))
    assert gone == 20 - 4000 * REJECTED_SHARE // 100
    with sqlite3.connect(outbox.path) as db:
        assert db.execute("SELECT min(row_id), count(*) FROM rejected").fetchone() == (11, 10)
    outbox.close()


def test_a_damaged_row_is_set_aside_and_the_others_go_on(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.sqlite", MIB)
    outbox.add([entry(0), entry(1)])
    with sqlite3.connect(outbox.path) as db:
        db.execute("UPDATE pending SET headers = '[[1' WHERE row_id = 1")
    assert ids(outbox) == [2]
    with sqlite3.connect(outbox.path) as db:
        assert db.execute("SELECT reason FROM rejected").fetchall() == [("unreadable",)]
    outbox.close()


@pytest.mark.parametrize("topic", ["", ", topic TEXT NOT NULL DEFAULT ''"])
def test_an_outbox_of_before_versions_is_brought_up_to_date(tmp_path: Path, topic: str) -> None:
    path = tmp_path / "o.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(OLD_TABLE.format(name="pending", more="", topic=topic))
        db.execute(OLD_TABLE.format(name="rejected", more="reason TEXT NOT NULL,", topic=topic))
        db.execute(
            "INSERT INTO pending (severity, key, headers, value, added_unix_ns)"
            " VALUES (1, x'61', '[]', x'62', 5)"
        )
    outbox = Outbox(path, MIB)
    (row,) = outbox.after(0, 5)
    assert (row.key, row.topic, outbox.size_bytes) == (b"a", "", 1 + 2 + 1 + 64)
    outbox.add([entry(1, topic="nae.oncall")])
    assert [row.topic for row in outbox.after(0, 5)] == ["", "nae.oncall"]
    outbox.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)


def test_an_outbox_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite"
    Outbox(path, MIB).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(OSError, match="newer version"):
        Outbox(path, MIB)
    assert path.read_bytes() == before


def foreign_text(path: Path) -> None:
    path.write_text("somebody's notes, long enough to be taken for a broken database" * 20)


def foreign_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE notes (id INTEGER)")


@pytest.mark.parametrize("make", [foreign_text, foreign_database])
def test_a_file_that_never_was_an_outbox_is_refused_again_and_again(
    tmp_path: Path, make: Any
) -> None:
    path = tmp_path / "o.sqlite"
    make(path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(OSError, match="is no outbox"):
            Outbox(path, MIB)
    assert path.read_bytes() == before


@pytest.mark.parametrize("where", ["head", "middle", "all"])
def test_a_damaged_outbox_is_moved_aside_and_a_fresh_one_made(tmp_path: Path, where: str) -> None:
    path = tmp_path / "o.sqlite"
    outbox = Outbox(path, 8 * MIB)
    outbox.add([entry(n) for n in range(300)])
    outbox.close()
    data = bytearray(path.read_bytes())
    start, end = {"head": (0, 4096), "middle": (4096 * 10, 4096 * 60), "all": (0, len(data))}[where]
    data[start:end] = b"\xa5" * (end - start)
    path.write_bytes(data)
    fresh = Outbox(path, 8 * MIB)
    (aside,) = fresh.moved_aside
    assert aside.name.startswith("o.sqlite.corrupt-")
    assert aside.read_bytes() == bytes(data)
    fresh.add([entry(1)])
    assert (fresh.recovered, fresh.events) == (0, 1)
    fresh.close()


def test_a_damaged_file_of_a_process_that_is_gone_does_not_stop_the_others(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite"
    first, second = Outbox(path, MIB), Outbox(path, MIB)
    second.add([entry(1)])
    second.close()
    first.close()
    second.path.write_bytes(b"\0" * 8192)
    third = Outbox(path, MIB)
    assert (third.events, [p.name[:19] for p in third.moved_aside]) == (0, ["o.1.sqlite.corrupt-"])
    third.close()


WRITER = """
import sys
from pathlib import Path
from alert_parts import entry
from nae_monitor.alert.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]), 1 << 30)
number = 0
while True:
    outbox.add([entry(number + n) for n in range(5)])
    number += 5
    print(number, flush=True)
"""


def test_every_commit_that_was_reported_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite"
    for _ in range(2):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent,
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        assert writer.stdout is not None
        for _ in range(20):
            reported = int(writer.stdout.readline())
        writer.kill()
        reported = int((writer.stdout.read().split() or [str(reported).encode()])[-1])
        writer.wait()
        outbox = Outbox(path, 1 << 30)
        assert outbox.moved_aside == []
        assert outbox.recovered in (reported, reported + 5)
        outbox.add([], delete=ids(outbox))
        outbox.close()


def test_what_was_kept_in_full_follows_a_narrower_setting_to_the_last_byte(tmp_path: Path) -> None:
    path, policy = tmp_path / "o.sqlite", make_policy("hash")
    outbox = Outbox(path, 8 * MIB)
    outbox.narrow("full", bytes)
    outbox.add([entry(n, content="full") for n in range(30)])
    outbox.add([], delete=range(1, 20))  # their texts are still in free pages
    outbox.reject(25, "TooLarge")
    outbox.close()
    assert any(canary.encode() in path.read_bytes() for canary in CANARIES.values())
    outbox = Outbox(path, 8 * MIB)
    assert outbox.narrow("hash", lambda value: narrowed(value, policy)) == 11
    everything = b"".join(part.read_bytes() for part in tmp_path.iterdir())
    assert not [name for name, canary in CANARIES.items() if canary.encode() in everything]
    for row in outbox.after(0, 100):
        assert json.loads(row.value) == json.loads(entry(row.row_id - 1).value)
    assert outbox.narrow("hash", lambda value: b"") == 0
    outbox.close()


def hashed_rows(outbox: Outbox) -> int:
    """Narrow to hashes, as a start does; how many rows were kept in full."""
    policy = make_policy("hash")
    return outbox.narrow("hash", lambda value: narrowed(value, policy))


def test_rows_of_another_process_in_full_are_narrowed_where_they_are_taken_over(
    tmp_path: Path,
) -> None:
    path = tmp_path / "o.sqlite"
    first, second = Outbox(path, MIB), Outbox(path, MIB)
    assert hashed_rows(first) == 0  # restarted under the narrower setting; the second was not
    second.narrow("full", bytes)
    second.add([entry(0, content="full")])
    second.close()
    first.close()
    heir = Outbox(path, MIB)
    assert heir.recovered == 1
    assert hashed_rows(heir) == 1
    everything = b"".join(part.read_bytes() for part in tmp_path.glob("o.sqlite*"))
    assert not [name for name, canary in CANARIES.items() if canary.encode() in everything]
    heir.close()


def test_rows_in_full_of_a_file_that_was_made_anew_are_narrowed_after_a_restart(
    tmp_path: Path,
) -> None:
    path = tmp_path / "o.sqlite"
    outbox = Outbox(path, MIB)
    outbox.narrow("full", bytes)
    outbox.renew()
    outbox.add([entry(0, content="full"), entry(1, content="full")])
    outbox.add([], delete=[1])  # its text is still in a free page
    outbox.close()
    outbox = Outbox(path, MIB)
    assert hashed_rows(outbox) == 1
    outbox.close()
    everything = b"".join(part.read_bytes() for part in tmp_path.glob("o.sqlite*"))
    assert not [name for name, canary in CANARIES.items() if canary.encode() in everything]


def test_a_number_that_was_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.sqlite", MIB)
    assert outbox.fact("x") is None
    outbox.keep_fact("x", 2**62)
    outbox.close()
    outbox = Outbox(tmp_path / "o.sqlite", MIB)
    assert outbox.fact("x") == 2**62
    outbox.close()
