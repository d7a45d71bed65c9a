"""Outboxes seen from outside: what lies in them, and putting back what was refused or damaged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nae_monitor.alert.event_rewriting import narrowed
from nae_monitor.alert.outbox_adopt import move_rejected
from nae_monitor.alert.outbox_file import (
    BUSY_TIMEOUT_S,
    COLUMNS,
    INSERT,
    numbered,
    open_database,
    try_lock,
)
from nae_monitor.alert.outbox_rows import unpacked_headers
from nae_monitor.alert.privacy import ContentPolicy, wider_modes
from nae_monitor.errors import InputDataError

_VALUE, _CONTENT, _HEADERS = 3, 6, 2  # places in COLUMNS


@dataclass(frozen=True, slots=True)
class OutboxState:
    """What one file holds."""

    path: Path
    is_in_use: bool  # by a live process
    events: int
    size_bytes: int
    oldest_age_s: float | None
    rejected: Mapping[str, int]  # by reason


def files_of(base: Path) -> list[Path]:
    """The files of an outbox that exist."""
    return [path for path in numbered(base) if path.exists()]


def moved_aside(base: Path) -> list[Path]:
    """Damaged files of an outbox that were moved aside, oldest first."""
    names = (f"{path.name}.corrupt-*" for path in numbered(base))
    found = {file for name in names for file in base.parent.glob(name)}
    return sorted(file for file in found if not file.name.endswith(("-wal", "-shm")))


def is_in_use(path: Path) -> bool:
    """Whether a live process holds the file."""
    if not Path(f"{path}.lock").exists():
        return False
    lock_fd = try_lock(path)
    if lock_fd is None:
        return True
    os.close(lock_fd)
    return False


def state_of(path: Path) -> OutboxState:
    """Look at one file, without changing it.

    Raises:
        OSError: it cannot be read.
        sqlite3.Error: it is damaged, or no outbox of this version.
    """
    path.stat()
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S)) as db:
        events, size_bytes, oldest = db.execute(
            "SELECT count(*), coalesce(sum(size_bytes), 0), min(added_unix_ns) FROM pending"
        ).fetchone()
        rejected = Counter(reason for (reason,) in db.execute("SELECT reason FROM rejected"))
    age_s = None if oldest is None else max(0.0, (time.time_ns() - oldest) / 1e9)
    return OutboxState(path, is_in_use(path), events, size_bytes, age_s, dict(rejected))


def restore_rejected(base: Path) -> int:
    """Let every refused event of an outbox wait again; a live process sends them by itself.

    Raises:
        OSError: a file cannot be written, or is no outbox.
        sqlite3.Error: a file is damaged, or busy for too long.
    """
    moved = 0
    for path in files_of(base):
        with contextlib.closing(open_database(path)) as db, db:
            moved += move_rejected(db)
    return moved


def salvage(damaged: Path, base: Path, policy: ContentPolicy) -> int:
    """Put what can still be read of a damaged file into an outbox; it stays as it is.

    What is damaged inside an event goes unnoticed where it still reads as one.

    Returns:
        how many events were put back: those that waited, and those that were refused.

    Raises:
        InputDataError: the file cannot be read at all.
        OSError: the outbox cannot be written.
        sqlite3.Error: the outbox is damaged, or busy for too long.
    """
    rows = list(_readable(damaged))
    wider = wider_modes(policy.mode)
    for row in rows:
        if wider and row[_CONTENT] in ("", *wider):  # "": kept before rows knew their mode
            row[_VALUE], row[_CONTENT] = narrowed(row[_VALUE], policy), policy.mode
    with contextlib.closing(open_database(base)) as db, db:
        db.executemany(INSERT, rows)
    return len(rows)


def _readable(damaged: Path) -> Iterator[list[Any]]:
    """Rows from both ends of each table, up to where it is damaged."""
    with tempfile.TemporaryDirectory() as directory:  # SQLite would change what it opens
        copy = Path(directory) / "damaged.sqlite"
        try:
            shutil.copyfile(damaged, copy)
            for suffix in ("-wal", "-shm"):
                if (part := Path(f"{damaged}{suffix}")).exists():
                    shutil.copyfile(part, f"{copy}{suffix}")
        except OSError as error:
            raise InputDataError(f"{damaged}: cannot be read: {error.strerror}") from error
        with contextlib.closing(sqlite3.connect(copy)) as db:
            for table in ("pending", "rejected"):
                yield from _rows(db, table)


def _rows(db: sqlite3.Connection, table: str) -> Iterator[list[Any]]:
    seen: set[int] = set()
    for order in ("ASC", "DESC"):
        with contextlib.suppress(sqlite3.DatabaseError):
            found = db.execute(f"SELECT row_id, {COLUMNS} FROM {table} ORDER BY row_id {order}")  # noqa: S608
            for row_id, *row in found:
                if row_id not in seen and _is_event(row):
                    yield row
                seen.add(row_id)


def _is_event(row: list[Any]) -> bool:
    try:
        unpacked_headers(str(row[_HEADERS]))
        return isinstance(row[_VALUE], bytes) and isinstance(json.loads(row[_VALUE]), dict)
    except (ValueError, TypeError, AttributeError):
        return False
