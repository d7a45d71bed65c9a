"""Rows gathered in memory until they become one whole, sealed Parquet file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nae_monitor.errors import RecordingError
from nae_monitor.recording.encryption import PLAIN, Cipher
from nae_monitor.recording.sealing import (
    OPEN_SUFFIX,
    LineAppender,
    Seal,
    seal_line,
    sync_directory,
    write_whole,
)

RETRY_S = 1.0  # a disk that refused is asked again after this long, not at every row


@dataclass(frozen=True, slots=True)
class Limits:
    """When a file is finished: whichever comes first."""

    rows: int
    bytes: int
    age_s: float


class RotatingTable:
    """One of the two tables. Not thread-safe: the writer holds its lock."""

    def __init__(
        self,
        directory: Path,
        stem: str,
        build: Callable[[Sequence[Mapping[str, Any]]], Any],
        seals: LineAppender,
        limits: Limits,
        clock: Callable[[], float],
        cipher: Cipher = PLAIN,
    ) -> None:
        self._directory = directory
        self._cipher = cipher
        self._stem = stem
        self._build = build
        self._seals = seals
        self._limits = limits
        self._clock = clock
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0
        self._since_s = 0.0
        self._number = 0
        self._sealed: Seal | None = None  # of a file that is written but not yet renamed
        self._refused_at_s: float | None = None
        self._refusal: OSError | None = None
        self.sealed_rows = 0

    @property
    def _final(self) -> Path:
        return self._directory / f"{self._stem}-{self._number:05d}.parquet"

    @property
    def _open(self) -> Path:
        return self._final.with_name(self._final.name + OPEN_SUFFIX)

    def add(self, row: Mapping[str, Any], size_bytes: int) -> None:
        """Take a row. Raises OSError: it was not taken."""
        self.rotate_if_due()
        if not self._rows:
            # The mark by which a reader can name what a crash took.
            self._open.touch()
            self._since_s = self._clock()
        self._rows.append(row)
        self._bytes += size_bytes

    def rotate_if_due(self) -> None:
        """Finish the file if it has grown or aged enough. Raises OSError."""
        if not self._rows:
            return
        full = len(self._rows) >= self._limits.rows or self._bytes >= self._limits.bytes
        aged = self._clock() - self._since_s >= self._limits.age_s
        # A sealed file takes no more rows, so one whose rename failed comes first.
        if full or aged or self._sealed is not None:
            self._ask_again_later()
            self.rotate()

    def _ask_again_later(self) -> None:
        if self._refusal is None or self._refused_at_s is None:
            return
        if self._clock() - self._refused_at_s < RETRY_S:
            raise OSError(self._refusal.errno, self._refusal.strerror, str(self._final))

    def rotate(self) -> None:
        """Finish the file now. Raises OSError: its rows stay in memory."""
        if not self._rows:
            return
        try:
            self._finish()
        except OSError as error:
            self._refusal, self._refused_at_s = error, self._clock()
            raise
        self._refusal = self._refused_at_s = None

    def _finish(self) -> None:
        if self._sealed is None:
            data = self._encoded()
            write_whole(self._open, data)
            digest = hashlib.sha256(data).hexdigest()
            seal = Seal(self._final.name, len(self._rows), len(data), digest)
            self._seals.append([seal_line(seal)], sync=True)
            self._sealed = seal
        self._open.rename(self._final)
        self.sealed_rows += len(self._rows)
        self._forget()
        self._number += 1
        sync_directory(self._directory)

    def _encoded(self) -> bytes:
        try:
            data = parquet_bytes(self._build(self._rows))
            return self._cipher.file(self._final.name, data)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            lost = len(self._rows)
            self._forget()  # kept, they would fail for ever and stop the recording
            kind = type(error).__name__
            raise RecordingError(f"{self._final}: {lost} rows cannot be encoded: {kind}") from None

    def _forget(self) -> None:
        self._rows, self._bytes, self._sealed = [], 0, None


def parquet_bytes(table: Any) -> bytes:
    """A table as one whole Parquet file of one row group."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=max(1, table.num_rows))
    return bytes(sink.getvalue().to_pybytes())
