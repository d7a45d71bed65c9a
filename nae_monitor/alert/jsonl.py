"""Alerts appended to a file, one CloudEvent in structured JSON a line, with rotation.

Several processes may write the same file: every change is made under an advisory lock on it,
and a file that was rotated or removed meanwhile is noticed and opened anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from nae_monitor.alert.event import to_event, to_json
from nae_monitor.alert.privacy import ContentPolicy, RedactedAlert
from nae_monitor.alert.threaded import RetryingSink
from nae_monitor.errors import Mark, Problem
from nae_monitor.health import Health
from nae_monitor.sink_settings import JsonlSettings

FSYNC_INTERVAL_S = 1.0
MAX_LINE_BYTES = 4 * 1024 * 1024


class JsonlSink(RetryingSink):
    """Appends to ``settings.path``; ``delivered`` means written (``always``: and synced).

    A full disk or a lost directory is counted as ``retried.*``; alerts wait in the queue.
    """

    def __init__(
        self, settings: JsonlSettings, policy: ContentPolicy, health: Health, name: str = "jsonl"
    ) -> None:
        self._settings = settings
        self._path = Path(settings.path).expanduser()
        self._fd: int | None = None
        self._unsynced_since_s: float | None = None
        self._began_unix_s: float | None = None
        super().__init__(name, policy, health, settings.queue_events)

    def _start_afresh(self) -> None:
        # A lock belongs to the open file, which a forked child shares with its parent.
        self._close_file()
        super()._start_afresh()

    def _deliver(self, alerts: Sequence[RedactedAlert]) -> int:
        lines = [to_json(to_event(a, self._policy).structured()) + b"\n" for a in alerts]
        done = 0
        while done < len(lines):
            try:
                done += self._write(lines[done:])
            except OSError:
                if not done:
                    raise
                break  # what is written must not be written again
        return done

    def _write(self, lines: Sequence[bytes]) -> int:
        """Append as many lines as go in before rotation, or rotate and append none."""
        with self._locked() as fd:
            taken = 0 if self._is_too_old(fd) else self._fitting(lines, os.fstat(fd))
            if taken == 0:
                try:
                    self._rotate()
                    return 0
                except OSError:  # an over-long file is better than a lost alert
                    self._tally.count("rotation_failed")
                    taken = len(lines)
            _append(fd, b"".join(lines[:taken]))
            if self._settings.fsync == "always":
                _fsync(fd)
        if self._unsynced_since_s is None:
            self._unsynced_since_s = time.monotonic()
        return taken

    def _step(self) -> None:
        super()._step()
        since_s = self._unsynced_since_s
        if since_s is not None and time.monotonic() - since_s >= FSYNC_INTERVAL_S:
            self._sync()

    def _finish(self) -> None:
        self._sync()
        self._close_file()

    def _sync(self) -> None:
        self._unsynced_since_s = None
        if self._settings.fsync == "interval" and self._fd is not None:
            _fsync(self._fd)

    def _close_file(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = self._began_unix_s = None

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The descriptor of the file that is at the path now, under its lock."""
        while True:
            fd = self._fd if self._fd is not None else open_for_append(self._path)
            self._fd = fd
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_at(fd, self._path):
                break
            self._close_file()
        try:
            yield fd
        finally:
            if self._fd is not None:
                fcntl.flock(fd, fcntl.LOCK_UN)

    def _fitting(self, lines: Sequence[bytes], status: os.stat_result) -> int:
        """How many lines go in before rotation; at least one into an empty file."""
        if not stat.S_ISREG(status.st_mode):
            return len(lines)
        size_bytes, taken = status.st_size, 0
        for line in lines:
            if size_bytes and size_bytes + len(line) > self._settings.rotate_bytes:
                break
            size_bytes += len(line)
            taken += 1
        return taken

    def _is_too_old(self, fd: int) -> bool:
        """Whether the file's first alert is older than allowed; asked under the lock."""
        if self._settings.rotate_age_s is None:
            return False
        if self._began_unix_s is None:
            self._began_unix_s = began_unix_s(fd)
        began_s = self._began_unix_s
        return began_s is not None and time.time() - began_s >= self._settings.rotate_age_s

    def _rotate(self) -> None:
        """``path`` becomes ``path.1``, and so on; the oldest beyond ``keep_files`` goes."""
        self._sync()
        for number in range(self._settings.keep_files, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path.with_name(f"{self._path.name}.{number - 1}")
            newer = self._path if number == 1 else newer
            if newer.exists():
                newer.replace(older)
        self._close_file()


def check(settings: JsonlSettings, where: Mark) -> list[Problem]:
    """What would keep the sink from writing; opens the file once and makes its directory."""
    path = Path(settings.path).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(open_for_append(path))
    except OSError as error:
        mend = "name a file in a directory this user may write"
        return [Problem(where, f"cannot write {path}: {error.strerror}", mend)]
    return []


def open_for_append(path: Path) -> int:
    """Open or create; a last line torn by a crash is ended, so that later lines stay readable."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            fcntl.flock(fd, fcntl.LOCK_EX)  # else another writer's half-written line looks torn
            size_bytes = os.fstat(fd).st_size
            if size_bytes and os.pread(fd, 1, size_bytes - 1) != b"\n":
                os.write(fd, b"\n")
            fcntl.flock(fd, fcntl.LOCK_UN)
    except BaseException:
        os.close(fd)
        raise
    return fd


def began_unix_s(fd: int) -> float | None:
    """When the first alert of a file arose; None for an empty file, or no file but a device.

    Read from the file, so that it holds over restarts and for every process that writes it.
    Where the first line is no alert, the file's last change stands in for it.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return None
    line = os.pread(fd, MAX_LINE_BYTES, 0).split(b"\n", 1)[0]
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        return datetime.fromisoformat(json.loads(line)["time"]).timestamp()
    return status.st_mtime


def _append(fd: int, data: bytes) -> None:
    """Write all or nothing, as far as the file system lets us take back a part."""
    start = os.fstat(fd).st_size
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.ftruncate(fd, start)
        raise


def _fsync(fd: int) -> None:
    if stat.S_ISREG(os.fstat(fd).st_mode):
        os.fsync(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
