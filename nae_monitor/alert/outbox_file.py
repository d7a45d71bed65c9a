"""The file under an outbox: its lock, its schema and version, and what is done about a broken one.

A file belongs to one live process, by a lock beside it; a second process on the same path takes
the next free number.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

APPLICATION_ID = 0x4E414531  # in the header of the file, so that no other file is taken for ours
SCHEMA_VERSION = 1  # in user_version; 0 is what was written before versions were
MAX_PROCESSES = 64
BUSY_TIMEOUT_S = 1.0
# A busy outbox writes and deletes the same pages again and again: the log is written back seldom.
# The cache stays small: what is read from it does not show that the file was damaged.
CHECKPOINT_PAGES = 4000
ROW_OVERHEAD_BYTES = 64  # of SQLite and the small columns, about
COLUMNS = "severity, key, headers, value, added_unix_ns, topic, content, size_bytes"
INSERT = f"INSERT INTO pending ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
TABLES = ("pending", "rejected")
_FIELDS = """
    severity INTEGER NOT NULL,
    key BLOB NOT NULL,
    headers TEXT NOT NULL,
    value BLOB NOT NULL,
    added_unix_ns INTEGER NOT NULL,
    topic TEXT NOT NULL DEFAULT '',
    content TEXT NOT NULL DEFAULT '',
    size_bytes INTEGER NOT NULL DEFAULT 0
"""
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS pending (row_id INTEGER PRIMARY KEY AUTOINCREMENT, {_FIELDS});
CREATE TABLE IF NOT EXISTS rejected
    (row_id INTEGER PRIMARY KEY AUTOINCREMENT, reason TEXT NOT NULL, {_FIELDS});
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
DROP INDEX IF EXISTS pending_by_severity;
CREATE INDEX IF NOT EXISTS pending_by_worth ON pending (severity, row_id, size_bytes);
"""
_ADDED = {  # since version 0
    "topic": "TEXT NOT NULL DEFAULT ''",
    "content": "TEXT NOT NULL DEFAULT ''",
    "size_bytes": "INTEGER NOT NULL DEFAULT 0",
}
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An outbox's database, its lock, and where a broken one that lay there was moved to."""

    path: Path
    lock_fd: int
    db: sqlite3.Connection
    moved_aside: Path | None


def is_broken(error: BaseException) -> bool:
    """Whether SQLite says that the file itself is damaged (not: full disk, locked, forbidden)."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _BROKEN


def claim(base: Path) -> OpenFile:
    """Open the first file for ``base`` that no live process holds.

    A damaged outbox is moved aside and a fresh one made; what was never an outbox is refused.

    Raises:
        OSError: it cannot be written, is no outbox, is of a newer version, or all are taken.
        sqlite3.Error: SQLite cannot use it.
    """
    base.parent.mkdir(parents=True, exist_ok=True)
    for path in numbered(base):
        was_outbox = Path(f"{path}.lock").exists()
        lock_fd = try_lock(path)
        if lock_fd is None:
            continue
        try:
            return _claimed(path, lock_fd, was_outbox)
        except BaseException:
            if not was_outbox:
                Path(f"{path}.lock").unlink(missing_ok=True)
            os.close(lock_fd)
            raise
    raise OSError(f"{MAX_PROCESSES} processes hold an outbox at {base}")


def _claimed(path: Path, lock_fd: int, was_outbox: bool) -> OpenFile:
    try:
        return OpenFile(path, lock_fd, open_database(path), None)
    except sqlite3.DatabaseError as error:
        if not is_broken(error):
            raise
        if not was_outbox and not _is_marked(path):
            raise OSError(f"{path} is no outbox") from error
    aside = move_aside(path)
    return OpenFile(path, lock_fd, open_database(path), aside)


def _is_marked(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(72)[68:] == APPLICATION_ID.to_bytes(4, "big")


def move_aside(path: Path) -> Path:
    """Rename a damaged database and its log, which belong together; returns the new name."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.corrupt-{stamp}")
    number = 0
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.corrupt-{stamp}.{number}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        part = Path(f"{path}{suffix}")
        if part.exists():
            part.rename(f"{aside}{suffix}")
    return aside


def numbered(base: Path) -> list[Path]:
    """``alerts.sqlite``, ``alerts.1.sqlite``, …"""
    more = [base.with_name(f"{base.stem}.{n}{base.suffix}") for n in range(1, MAX_PROCESSES)]
    return [base, *more]


def try_lock(path: Path) -> int | None:
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


def open_database(path: Path) -> sqlite3.Connection:
    """Open or create an outbox's database, and bring an older one to this version.

    Raises:
        OSError: it cannot be written, is no outbox, or is of a newer version.
        sqlite3.Error: SQLite cannot use it, or it is damaged (:func:`is_broken`).
    """
    # Created here and not by SQLite, so that nobody else may read it under any umask.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    try:
        _refuse_foreign(db, path)
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            error = sqlite3.DatabaseError(f"{path}: damaged")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        _bring_up_to_date(db)
    except BaseException:
        db.close()
        raise
    return db


def _refuse_foreign(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if application not in (0, APPLICATION_ID) or (tables and "pending" not in tables):
        raise OSError(f"{path} is no outbox")
    if application == APPLICATION_ID and version > SCHEMA_VERSION:
        raise OSError(
            f"{path} was written by a newer version of this package"
            f" (schema {version}, this one knows {SCHEMA_VERSION})"
        )


def _bring_up_to_date(db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    with db:
        db.execute("BEGIN IMMEDIATE")  # all of it or nothing: a crash leaves the older version
        had_rows = False
        for table in TABLES:
            there = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
            had_rows = had_rows or bool(there)
            for name, kind in _ADDED.items() if there else ():
                if name not in there:
                    db.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        for table in TABLES:
            db.execute(
                f"UPDATE {table} SET size_bytes = length(key) + length(headers) + length(value)"  # noqa: S608
                f" + {ROW_OVERHEAD_BYTES} WHERE size_bytes = 0"
            )
        if had_rows:  # of which privacy setting is unknown: to be taken for the widest
            db.execute("INSERT OR IGNORE INTO facts VALUES ('content_width', 3)")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
