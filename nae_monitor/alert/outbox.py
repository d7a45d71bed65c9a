"""Events on disk until a broker has acknowledged them (SQLite, write-ahead log).

A file belongs to one live process, by a lock beside it; a second process on the same path takes
the next free number, and whoever starts takes over the rows of files whose process is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from nae_monitor.alert.event import AlertEvent

P = ParamSpec("P")
T = TypeVar("T")
MAX_PROCESSES = 64
BUSY_TIMEOUT_S = 1.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS pending (
    row_id INTEGER PRIMARY KEY AUTOINCREMENT,
    severity INTEGER NOT NULL,
    key BLOB NOT NULL,
    headers TEXT NOT NULL,
    value BLOB NOT NULL,
    added_unix_ns INTEGER NOT NULL,
    topic TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS pending_by_severity ON pending (severity, row_id);
CREATE TABLE IF NOT EXISTS rejected (
    row_id INTEGER PRIMARY KEY AUTOINCREMENT,
    reason TEXT NOT NULL,
    severity INTEGER NOT NULL,
    key BLOB NOT NULL,
    headers TEXT NOT NULL,
    value BLOB NOT NULL,
    added_unix_ns INTEGER NOT NULL,
    topic TEXT NOT NULL DEFAULT ''
);
"""
_COLUMNS = "severity, key, headers, value, added_unix_ns, topic"
_INSERT = f"INSERT INTO pending ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Row:
    """One event waiting for its acknowledgement."""

    row_id: int  # grows with the order of acceptance
    key: bytes
    headers: list[tuple[str, bytes]]
    value: bytes
    topic: str = ""  # "": the sink's own


class _ForkGate:
    """Keeps ``fork`` out of SQLite calls: a child born inside one inherits SQLite's locked mutex.

    Such a child would hang in its first SQLite call, for ever. The fork waits for the running
    call, at most ``WAIT_S``, so that a stalled disk does not stop the host.
    """

    WAIT_S = 0.5

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._is_held = False

    def before(self) -> None:
        self._is_held = self.lock.acquire(timeout=self.WAIT_S)

    def after_in_parent(self) -> None:
        if self._is_held:
            self.lock.release()

    def after_in_child(self) -> None:
        self.lock = threading.RLock()


_GATE = _ForkGate()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_GATE.before,
        after_in_parent=_GATE.after_in_parent,
        after_in_child=_GATE.after_in_child,
    )


def _outside_fork(method: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(method)
    def gated(*args: P.args, **kwargs: P.kwargs) -> T:
        with _GATE.lock:
            return method(*args, **kwargs)

    return gated


class Outbox:
    """Durable first-in first-out store of at most ``max_events``. For one thread.

    Every method may raise :class:`sqlite3.Error` (full disk, broken file); what was committed
    before stays.
    """

    @_outside_fork
    def __init__(self, path: Path, max_events: int) -> None:
        """Open the first free file for ``path`` and take over what dead processes left.

        Raises:
            OSError: the directory or file cannot be written, or all numbers are taken.
            sqlite3.Error: the file is not an outbox.
        """
        self._max_events = max_events
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_fd, self.path = _claim(path)
        try:
            self._db = _open(self.path)
            self.recovered = self.depth()
            self.recovered += self._adopt(path)
        except BaseException:
            os.close(self._lock_fd)
            raise

    @_outside_fork
    def add(self, events: Sequence[AlertEvent], *, keep_up_to: int = 0) -> int:
        """Commit events in one transaction, synced to disk.

        When the outbox is full, the lowest severity goes first and of that the oldest; rows up
        to ``keep_up_to`` are on the wire and stay.

        Returns:
            how many events, old or new, had to go.
        """
        now = time.time_ns()
        with self._db:
            self._db.executemany(
                _INSERT,
                [
                    (e.severity.rank, e.key, _pack(e.headers()), e.value(), now, e.topic)
                    for e in events
                ],
            )
            over = self.depth() - self._max_events
            if over <= 0:
                return 0
            found = self._db.execute(
                "DELETE FROM pending WHERE row_id IN (SELECT row_id FROM pending"
                " WHERE row_id > ? ORDER BY severity, row_id LIMIT ?)",
                (keep_up_to, over),
            )
            return found.rowcount

    @_outside_fork
    def after(self, row_id: int, limit: int) -> list[Row]:
        """The oldest rows beyond ``row_id``, at most ``limit``."""
        rows = self._db.execute(
            "SELECT row_id, key, headers, value, topic FROM pending WHERE row_id > ?"
            " ORDER BY row_id LIMIT ?",
            (row_id, limit),
        )
        return [Row(r[0], bytes(r[1]), _unpack(r[2]), bytes(r[3]), r[4]) for r in rows]

    @_outside_fork
    def delete(self, row_ids: Sequence[int]) -> None:
        """Forget acknowledged rows."""
        with self._db:
            self._db.executemany("DELETE FROM pending WHERE row_id = ?", [(i,) for i in row_ids])

    @_outside_fork
    def reject(self, row_id: int, reason: str) -> None:
        """Set a row aside that no broker will ever take."""
        with self._db:
            self._db.execute(
                f"INSERT INTO rejected (reason, {_COLUMNS})"  # noqa: S608
                f" SELECT ?, {_COLUMNS} FROM pending WHERE row_id = ?",
                (reason, row_id),
            )
            self._db.execute("DELETE FROM pending WHERE row_id = ?", (row_id,))

    @_outside_fork
    def depth(self) -> int:
        """Rows waiting."""
        return int(self._db.execute("SELECT count(*) FROM pending").fetchone()[0])

    @_outside_fork
    def oldest_unix_ns(self) -> int | None:
        """When the oldest waiting row was accepted."""
        found = self._db.execute("SELECT added_unix_ns FROM pending ORDER BY row_id LIMIT 1")
        row = found.fetchone()
        return None if row is None else int(row[0])

    @_outside_fork
    def close(self) -> None:
        """Release the file; rows stay."""
        try:
            self._db.close()
        finally:
            os.close(self._lock_fd)

    def let_go(self) -> None:
        """In a forked child: give up the inherited lock, which stays the parent's."""
        os.close(self._lock_fd)

    def _adopt(self, base: Path) -> int:
        """Move the rows of files that no live process holds; returns how many.

        A crash between the two commits repeats events, and never loses one.
        """
        taken = 0
        for path in _numbered(base):
            if path == self.path or not path.exists():
                continue
            lock_fd = _try_lock(path)
            if lock_fd is None:
                continue
            try:
                taken += self._take_rows(path)
            finally:
                os.close(lock_fd)
        return taken

    def _take_rows(self, path: Path) -> int:
        with contextlib.closing(_open(path)) as other:
            rows = other.execute(f"SELECT {_COLUMNS} FROM pending ORDER BY row_id").fetchall()  # noqa: S608
            with self._db:
                self._db.executemany(_INSERT, rows)
            with other:
                other.execute("DELETE FROM pending")
        return len(rows)


def _numbered(base: Path) -> list[Path]:
    """``alerts.sqlite``, ``alerts.1.sqlite``, …"""
    more = [base.with_name(f"{base.stem}.{n}{base.suffix}") for n in range(1, MAX_PROCESSES)]
    return [base, *more]


def _claim(base: Path) -> tuple[int, Path]:
    for path in _numbered(base):
        lock_fd = _try_lock(path)
        if lock_fd is not None:
            return lock_fd, path
    raise OSError(f"{MAX_PROCESSES} processes hold an outbox at {base}")


def _try_lock(path: Path) -> int | None:
    """The held lock of ``path``, or None if another process lives on it."""
    lock_fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock_fd)
        return None
    except BaseException:
        os.close(lock_fd)
        raise
    return lock_fd


def _open(path: Path) -> sqlite3.Connection:
    # Created here and not by SQLite, so that nobody else may read it under any umask.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(_SCHEMA)
        for table in ("pending", "rejected"):  # a file of a version that knew one topic only
            if "topic" not in {row[1] for row in db.execute(f"PRAGMA table_info({table})")}:
                db.execute(f"ALTER TABLE {table} ADD COLUMN topic TEXT NOT NULL DEFAULT ''")
    except BaseException:
        db.close()
        raise
    return db


def _pack(headers: Sequence[tuple[str, bytes]]) -> str:
    return json.dumps([[name, value.decode()] for name, value in headers])


def _unpack(text: str) -> list[tuple[str, bytes]]:
    return [(name, value.encode()) for name, value in json.loads(text)]
