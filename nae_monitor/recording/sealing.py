"""Files that are either whole on disk or named as lost: atomic writes, appends and their seals."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nae_monitor.errors import RecordingError
from nae_monitor.recording.encryption import PLAIN, Cipher
from nae_monitor.recording.findings import canonical_line

MANIFEST = "manifest.json"
SEALS = "seals.jsonl"
FINDINGS = "findings.jsonl"
STOPS = "stops.jsonl"
OPEN_SUFFIX = ".open"
ERASURE = "erasure.json"  # what is left to do of an erasure that was broken off
MAX_FILE_BYTES = 2 * 1024**3
MAX_JSON_BYTES = 1024**2  # the manifest, and any one line


@dataclass(frozen=True, slots=True)
class Seal:
    """What a finished Parquet file must be."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Totals:
    """The last line of the seals: the recording was closed in order, with this many rows."""

    activations: int
    requests: int
    findings: int
    findings_sha256: str
    stops: int = 0
    stops_sha256: str = ""  # empty before format 2, which had no stops
    stops_lost: int | None = None  # that were never taken; None: nobody knows, as before format 3


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError from within name the file: the system does so only where one is opened."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write and sync a file; the caller renames it to make it visible. Raises OSError."""
    with naming(path), path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync_directory(path: Path) -> None:
    """Make renames in ``path`` last through a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LineAppender:
    """Appends whole lines to a file. A write that fails leaves no part of a line behind."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        self._bytes = os.fstat(self._descriptor).st_size

    def lock(self) -> None:
        """Hold the file, until it is closed, against whoever asks the same. Raises OSError."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def append(self, lines: list[str], *, sync: bool = False) -> None:
        """Append each line and a newline.

        Raises:
            OSError: nothing of ``lines`` is in the file then.
        """
        data = "".join(f"{line}\n" for line in lines).encode("ascii")
        try:
            with naming(self._path):
                written = 0
                while written < len(data):
                    written += os.write(self._descriptor, data[written:])
                if sync:
                    os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._bytes)
            raise
        self._bytes += len(data)

    def sync(self) -> None:
        """Make everything appended last. Raises OSError."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file. Raises OSError."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a forked child may hold it open, too
        os.close(self._descriptor)


class CountedAppender(LineAppender):
    """Knows how many lines it took, and their SHA-256 as they stand on the disk."""

    def __init__(self, path: Path, cipher: Cipher = PLAIN) -> None:
        super().__init__(path)
        self._name = path.name
        self._cipher = cipher
        self.count = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of everything appended, in hex."""
        return self._digest.hexdigest()

    def append(self, lines: list[str], *, sync: bool = False) -> None:
        """See :meth:`LineAppender.append`; the lines are encrypted on the way."""
        written = [
            self._cipher.line(self._name, number, line)
            for number, line in enumerate(lines, start=self.count)
        ]
        super().append(written, sync=sync)
        self.count += len(lines)
        self._digest.update("".join(f"{line}\n" for line in written).encode("ascii"))


def read_lines(path: Path) -> tuple[list[str], bool]:
    """The whole lines of a file, and whether an unfinished one follows (dropped).

    Raises:
        RecordingError: unreadable, oversize or not UTF-8.
    """
    data = read_bytes(path)
    head, _, tail = data.rpartition(b"\n")
    try:
        return (head.decode("utf-8").split("\n") if head else []), bool(tail)
    except UnicodeDecodeError as error:
        raise RecordingError(f"{path}: is not UTF-8 text") from error


def read_bytes(path: Path) -> bytes:
    """A whole file of bounded size; RecordingError if that cannot be."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RecordingError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read: {error.strerror}") from error


def read_sealed(path: Path, seal: Seal) -> bytes:
    """The bytes of a sealed file; RecordingError where they are not those that were sealed."""
    data = read_bytes(path)
    if len(data) != seal.bytes:
        kind = "truncated" if len(data) < seal.bytes else "longer than when it was sealed"
        raise RecordingError(f"{path}: {kind}: {len(data)} bytes of {seal.bytes}")
    if hashlib.sha256(data).hexdigest() != seal.sha256:
        raise RecordingError(f"{path}: damaged: its SHA-256 is not the sealed one")
    return data


def parse_json(text: str, where: str) -> Any:
    """Bounded JSON from an untrusted file; RecordingError names ``where``."""
    if len(text) > MAX_JSON_BYTES:
        raise RecordingError(f"{where}: longer than {MAX_JSON_BYTES} bytes")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{where}: is not JSON") from error


def read_seals(path: Path) -> tuple[list[Seal], Totals | None]:
    """Every seal, and the totals if the recording was closed.

    Raises:
        RecordingError: a line that is no seal; names file and line.
    """
    if not path.exists():
        return [], None
    seals: list[Seal] = []
    totals: Totals | None = None
    lines, _ = read_lines(path)
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if totals is not None:
            raise RecordingError(f"{where}: a line after the totals")
        value = parse_json(line, where)
        try:
            if "file" in value:
                seals.append(_seal(value))
            else:
                totals = Totals(**value)
        except (TypeError, ValueError) as error:
            raise RecordingError(f"{where}: is not a seal") from error
    return seals, totals


def _seal(value: Mapping[str, Any]) -> Seal:
    seal = Seal(**value)
    name = seal.file
    if not isinstance(name, str) or "/" in name or "\\" in name or name.startswith("."):
        raise ValueError("a seal names a file of its own directory")
    if not all(isinstance(count, int) and count >= 0 for count in (seal.rows, seal.bytes)):
        raise ValueError("a seal counts rows and bytes")
    return seal


def seal_line(value: Seal | Totals) -> str:
    """A seal or the totals as a canonical line."""
    return canonical_line({name: getattr(value, name) for name in value.__slots__})
