"""Events on disk until the far end has acknowledged them (SQLite, write-ahead log).

Whoever starts takes over the rows of files whose process is gone; see
:mod:`nae_monitor.alert.outbox_file` for files, locks and versions.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from nae_monitor.alert.fork_gate import outside_fork
from nae_monitor.alert.outbox_adopt import adopt, move_rejected
from nae_monitor.alert.outbox_file import (
    COLUMNS,
    INSERT,
    TABLES,
    claim,
    move_aside,
    open_database,
)
from nae_monitor.alert.outbox_fresh import FreshRows
from nae_monitor.alert.outbox_rows import Entry, Row, packed, ranges, row_of, unpacked_headers
from nae_monitor.alert.privacy import ContentMode, wider_modes, width

REJECTED_SHARE = 0.25  # of the bound, beside it, for what was refused
UNREADABLE = "unreadable"
_WIDTH = "content_width"


class Outbox:
    """Durable first-in first-out store of events of at most ``max_bytes``. For one thread.

    The bound is on keys, headers and values with a little for each row; the file may be some
    megabytes larger. Every method may raise :class:`sqlite3.Error` (full disk, broken file);
    what was committed before stays.

    Attributes:
        recovered: events found at the opening, of earlier processes.
        moved_aside: where damaged files that lay here are now.
        events: rows waiting.
        size_bytes: of them.
    """

    @outside_fork
    def __init__(self, path: Path, max_bytes: int) -> None:
        """Open the first free file for ``path`` and take over what dead processes left.

        Raises:
            OSError: it cannot be written, is no outbox, is of a newer version, or all numbers
                are taken.
            sqlite3.Error: SQLite cannot use it.
        """
        self._max_bytes = max_bytes
        self.events = self.size_bytes = 0
        self._unreadable = 0  # rows, since they were last told
        self._width = width("full")  # of the mode that rows are added under, once that is known
        self._fresh = FreshRows()
        opened = claim(path)
        self._lock_fd, self.path, self._db = opened.lock_fd, opened.path, opened.db
        self.moved_aside = [] if opened.moved_aside is None else [opened.moved_aside]
        try:
            self.moved_aside += adopt(self._db, self.path, path)
            self._count()
            self.recovered = self.events
        except BaseException:
            self._db.close()
            os.close(self._lock_fd)
            raise

    @outside_fork
    def add(
        self,
        entries: Sequence[Entry],
        *,
        delete: Collection[int] = (),
        keep: Collection[int] = (),
    ) -> int:
        """Commit entries, and forget acknowledged rows, in one transaction, synced to disk.

        When the outbox is full, the lowest severity goes first and of that the oldest; rows in
        ``keep`` are on the wire and stay.

        Returns:
            how many events, old or new, had to go.
        """
        now = time.time_ns()
        with self._db:
            freed_rows, freed_bytes = self._delete(delete)
            rows_in = [packed(entry, now) for entry in entries]
            self._db.executemany(INSERT, rows_in)
            (last_id,) = self._db.execute("SELECT last_insert_rowid()").fetchone()
            rows = self.events - freed_rows + len(rows_in)
            size_bytes = self.size_bytes - freed_bytes + sum(row[-1] for row in rows_in)
            gone: list[tuple[int, int]] = []
            if size_bytes > self._max_bytes:
                gone = self._least_worth(size_bytes - self._max_bytes, frozenset(keep))
                self._delete([row_id for row_id, _ in gone])
        self.events = rows - len(gone)
        self.size_bytes = size_bytes - sum(size for _, size in gone)
        first_id = last_id - len(entries) + 1  # of one transaction, so their ids have no gaps
        made = enumerate(zip(entries, rows_in, strict=True), first_id)
        fresh = [row_of(row_id, entry, row[-1]) for row_id, (entry, row) in made]
        self._fresh.committed(fresh, {*delete, *(row_id for row_id, _ in gone)})
        return len(gone)

    def _delete(self, row_ids: Collection[int]) -> tuple[int, int]:
        rows = freed_bytes = 0
        for first, last in ranges(row_ids):
            sizes = self._db.execute(
                "DELETE FROM pending WHERE row_id BETWEEN ? AND ? RETURNING size_bytes",
                (first, last),
            ).fetchall()
            rows, freed_bytes = rows + len(sizes), freed_bytes + sum(size for (size,) in sizes)
        return rows, freed_bytes

    def _least_worth(self, over_bytes: int, keep: frozenset[int]) -> list[tuple[int, int]]:
        """Rows, with their sizes, that together are at least so large."""
        gone: list[tuple[int, int]] = []
        found = self._db.execute("SELECT row_id, size_bytes FROM pending ORDER BY severity, row_id")
        for row_id, size_bytes in found:
            if over_bytes <= 0:
                break
            if row_id not in keep:
                gone.append((row_id, size_bytes))
                over_bytes -= size_bytes
        found.close()
        return gone

    @outside_fork
    def after(self, row_id: int, limit: int) -> list[Row]:
        """The oldest rows beyond ``row_id``, at most ``limit``; damaged ones are set aside."""
        self.refresh()
        fresh = self._fresh.after(row_id, limit)
        return self._read(row_id, limit) if fresh is None else fresh

    def _read(self, row_id: int, limit: int) -> list[Row]:
        found = self._db.execute(
            "SELECT row_id, severity, key, headers, value, topic, content, size_bytes FROM pending"
            " WHERE row_id > ? ORDER BY row_id LIMIT ?",
            (row_id, limit),
        ).fetchall()
        rows = []
        for number, severity, key, headers, *more in found:
            try:
                unpacked = unpacked_headers(headers)
            except (ValueError, TypeError, AttributeError):
                self.reject(number, UNREADABLE)
                self._unreadable += 1
                continue
            rows.append(Row(number, severity, key, unpacked, *more))
        return rows

    @outside_fork
    def reject(self, row_id: int, reason: str, instead: Entry | None = None) -> int:
        """Set a row aside that the far end will never take, and keep another event instead.

        Returns:
            how many earlier refused events had to go for it.
        """
        with self._db:
            self._db.execute(
                f"INSERT INTO rejected (reason, {COLUMNS})"  # noqa: S608
                f" SELECT ?, {COLUMNS} FROM pending WHERE row_id = ?",
                (reason, row_id),
            )
            self._delete([row_id])
            if instead is not None:
                self._db.execute(INSERT, packed(instead, time.time_ns()))
            gone = self._thin_rejected()
        self._count()
        return gone

    def take_unreadable(self) -> int:
        """How many damaged rows :meth:`after` has set aside since this was last asked."""
        count, self._unreadable = self._unreadable, 0
        return count

    def _thin_rejected(self) -> int:
        found = self._db.execute(
            "DELETE FROM rejected WHERE row_id IN (SELECT row_id FROM (SELECT row_id,"
            " sum(size_bytes) OVER (ORDER BY row_id DESC) AS newer FROM rejected) WHERE newer > ?)",
            (int(self._max_bytes * REJECTED_SHARE),),
        )
        return found.rowcount

    @outside_fork
    def restore_rejected(self) -> int:
        """Put every refused event among those that wait; returns how many."""
        with self._db:
            moved = move_rejected(self._db)
        self._count()
        return moved

    @outside_fork
    def narrow(self, mode: ContentMode, change: Callable[[bytes], bytes]) -> int:
        """Bring what was kept under a wider privacy setting to ``mode``; returns how many rows.

        The file is written anew, so that texts of deleted rows do not stay in it either.
        """
        modes = wider_modes(mode)
        self._width = width(mode)
        # Rows may come from a file whose process ran under another mode, so each is asked.
        if (self.fact(_WIDTH) or 0) <= self._width and not self._has_rows_of(modes):
            self.keep_fact(_WIDTH, self._width)
            return 0
        marks, count = ", ".join("?" * len(modes)), 0
        with self._db:
            for table in TABLES:
                found = self._db.execute(
                    f"SELECT row_id, value FROM {table} WHERE content IN ('', {marks})",  # noqa: S608
                    modes,
                ).fetchall()
                for row_id, value in found:
                    self._db.execute(
                        f"UPDATE {table} SET value = ?, content = ? WHERE row_id = ?",  # noqa: S608
                        (change(value), mode, row_id),
                    )
                count += len(found)
        self._db.execute("VACUUM")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.keep_fact(_WIDTH, self._width)  # last: a crash before it repeats all of this
        self._count()
        return count

    def _has_rows_of(self, modes: Sequence[ContentMode]) -> bool:
        """Whether a row was kept under one of ``modes``, or before rows knew theirs."""
        marks = ", ".join("?" * len(modes))
        found = (
            self._db.execute(
                f"SELECT EXISTS(SELECT 1 FROM {table} WHERE content IN ('', {marks}))",  # noqa: S608
                modes,
            ).fetchone()[0]
            for table in TABLES
            if modes
        )
        return any(found)

    @outside_fork
    def refresh(self) -> None:
        """Count anew where another process changed the file (``alerts resend``)."""
        if self._version() != self._seen_version:
            self._count()

    @outside_fork
    def oldest_unix_ns(self) -> int | None:
        """When the oldest waiting row was accepted."""
        found = self._db.execute("SELECT added_unix_ns FROM pending ORDER BY row_id LIMIT 1")
        row = found.fetchone()
        return None if row is None else int(row[0])

    @outside_fork
    def fact(self, name: str) -> int | None:
        """A number that was kept under a name."""
        found = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if found is None else int(found[0])

    @outside_fork
    def keep_fact(self, name: str, value: int) -> None:
        """Keep a number under a name."""
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    @outside_fork
    def renew(self) -> Path:
        """Move this file, which proved damaged, aside and go on with a fresh one.

        Returns:
            where the damaged one is now; its rows are not carried over.
        """
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        aside = move_aside(self.path)
        self._db = open_database(self.path)
        self.keep_fact(_WIDTH, self._width)
        self._count()
        return aside

    @outside_fork
    def close(self) -> None:
        """Release the file; rows stay."""
        try:
            self._db.close()
        finally:
            os.close(self._lock_fd)

    def let_go(self) -> None:
        """In a forked child: give up the inherited lock, which stays the parent's."""
        os.close(self._lock_fd)

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def _count(self) -> None:
        self._fresh.forget()
        self._seen_version = self._version()
        found = self._db.execute("SELECT count(*), coalesce(sum(size_bytes), 0) FROM pending")
        rows, size_bytes = found.fetchone()
        self.events, self.size_bytes = int(rows), int(size_bytes)
