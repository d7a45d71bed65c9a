"""Rows that move: from files whose process is gone, and from the refused to those that wait."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from nae_monitor.alert.outbox_file import (
    COLUMNS,
    INSERT,
    is_broken,
    move_aside,
    numbered,
    open_database,
    try_lock,
)


def adopt(db: sqlite3.Connection, own: Path, base: Path) -> list[Path]:
    """Move the rows of files of ``base`` that no live process holds into ``db``, which is ``own``.

    A crash between the two commits repeats events, and never loses one.

    Returns:
        where damaged files among them are now: they are moved aside.
    """
    moved_aside: list[Path] = []
    for path in numbered(base):
        if path == own or not path.exists():
            continue
        lock_fd = try_lock(path)
        if lock_fd is None:
            continue
        try:
            _take_rows(db, path)
        except sqlite3.DatabaseError as error:
            if not is_broken(error):
                raise
            moved_aside.append(move_aside(path))
        finally:
            os.close(lock_fd)
    return moved_aside


def _take_rows(db: sqlite3.Connection, path: Path) -> None:
    with contextlib.closing(open_database(path)) as other:
        rows = other.execute(f"SELECT {COLUMNS} FROM pending ORDER BY row_id").fetchall()  # noqa: S608
        with db:
            db.executemany(INSERT, rows)
        with other:
            other.execute("DELETE FROM pending")


def move_rejected(db: sqlite3.Connection) -> int:
    """Within a transaction: make every refused row of a database one that waits."""
    moved = db.execute(
        f"INSERT INTO pending ({COLUMNS}) SELECT {COLUMNS} FROM rejected ORDER BY row_id"  # noqa: S608
    ).rowcount
    db.execute("DELETE FROM rejected")
    return moved
