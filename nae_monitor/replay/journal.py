"""What a replay has judged so far, so that one that was broken off goes on where it was.

Only decoding and judging take long. Both are kept, part by part, in a file of their own; all else
is done again from it and gives the same bytes, since nothing in a run depends on when it is made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nae_monitor.errors import ConfigurationError, Mark, Problem, RecordingError
from nae_monitor.recording import canonical_line, finding_from_json, finding_to_json
from nae_monitor.recording.encryption import PLAIN, Cipher
from nae_monitor.recording.sealing import (
    FINDINGS,
    MANIFEST,
    SEALS,
    STOPS,
    LineAppender,
    parse_json,
    sync_directory,
    write_whole,
)
from nae_monitor.records import Decoding, Finding
from nae_monitor.replay.alerts import ALERTS

DIRECTORY = ".resume"
PLAN, JUDGED = "plan.json", "judged.jsonl"
_OF_A_RUN = (
    "activations-*.parquet*",
    "requests-*.parquet*",
    FINDINGS,
    STOPS,
    SEALS,
    ALERTS,
    f"{MANIFEST}*",
)
log = logging.getLogger("nae_monitor")


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of one row: a decoding and its findings, or the reason there are none."""

    decoding: Decoding | None
    reason: str | None
    findings: tuple[Finding, ...] | None
    reused: bool = False  # whether the decoding was made live


class Journal:
    """The parts of a run that are done, in order, each with its SHA-256.

    Made before the run's recording; :meth:`finish` comes after everything else was written.

    Args:
        run: the run's directory; made if missing.
        plan: everything that the outcome depends on, JSON-able.
        cipher: how the parts stand on the disk.

    Raises:
        ConfigurationError: the directory holds something else than this replay broken off, or
            another process is at it, or it cannot be written.
    """

    def __init__(self, run: Path, plan: Mapping[str, Any], cipher: Cipher = PLAIN) -> None:
        self._run = run
        self._cipher = cipher
        self._directory = run / DIRECTORY
        self._lock = FileLock(self._directory / "lock", timeout=0)
        try:
            self._begin(canonical_line(plan))
        except Timeout:
            mend = "wait for it, or give this one another --out"
            raise _refused(run, "another replay is writing it", mend) from None
        except OSError as error:
            mend = "choose a directory this user may write, with free space"
            raise _refused(run, f"cannot be written: {error.strerror}", mend) from error

    def _begin(self, plan: str) -> None:
        held = self._directory / PLAN
        if self._files() and not held.exists():
            message = "already holds a recording"
            raise _refused(self._run, message, "give each run a directory of its own")
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            if held.exists():
                self._continue(held, plan)
            else:
                whole = self._directory / f"{PLAN}.open"
                write_whole(whole, plan.encode("ascii"))
                whole.rename(held)
                sync_directory(self._directory)
            self._parts = _whole_parts(self._directory / JUDGED)
            self._kept = _lines(self._directory / JUDGED)
            self._told = 0  # of the parts done before
            self._written = self._parts
            self._file = LineAppender(self._directory / JUDGED)
        except BaseException:
            self._lock.release()
            raise

    def _continue(self, held: Path, plan: str) -> None:
        before, now = (parse_json(text, str(held)) for text in (held.read_text("ascii"), plan))
        if before != now:
            keys = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
            message = f"holds a replay broken off that had other {', '.join(keys)}"
            raise _refused(self._run, message, "replay as then, or give another --out")
        for path in self._files():
            path.unlink()

    def _files(self) -> list[Path]:
        """What a run has put there; nothing else is ever touched."""
        return [path for pattern in _OF_A_RUN for path in self._run.glob(pattern)]

    @property
    def parts(self) -> int:
        """How many parts were done before."""
        return self._parts

    def kept(self) -> list[Judged] | None:
        """The next part that was done before; None when there is no more."""
        line = next(self._kept, None)
        if line is None:
            return None
        number, self._told = self._told, self._told + 1
        where = f"{self._directory / JUDGED}:{number + 1}"
        text = line[65:].decode("ascii")  # checked at the start
        return part_from_text(self._cipher.open_line(JUDGED, number, text, where), where)

    def keep(self, part: Sequence[Judged]) -> None:
        """Take a further part. Raises OSError: the next start does it again."""
        line = self._cipher.line(JUDGED, self._written, part_to_text(part))
        digest = hashlib.sha256(line.encode("ascii")).hexdigest()
        self._file.append([f"{digest} {line}"], sync=True)
        self._written += 1

    def close(self) -> None:
        """Leave everything for a later start."""
        self._kept.close()
        self._file.close()
        self._lock.release()

    def finish(self) -> None:
        """The run is whole: nothing of this is needed any more."""
        (self._directory / PLAN).unlink()
        self.close()
        shutil.rmtree(self._directory)


def part_to_text(part: Sequence[Judged]) -> str:
    """A part as one line of ASCII; the inverse of :func:`part_from_text`."""
    return canonical_line([_to_json(row) for row in part])


def part_from_text(text: str, where: str) -> list[Judged]:
    """Read a part; RecordingError, naming ``where``, if it is none."""
    try:
        return [_judged(row, where) for row in json.loads(text)]
    except (TypeError, ValueError) as error:
        raise RecordingError(f"{where}: not of this version of the package") from error


def _whole_parts(path: Path) -> int:
    """Cut off what was not written whole, or is damaged; returns how many parts remain."""
    if not path.exists():
        return 0
    parts = size = 0
    for line in _lines(path):
        if hashlib.sha256(line[65:]).hexdigest().encode("ascii") != line[:64]:
            log.warning("%s: damaged behind part %d; what follows is done again", path, parts)
            break
        parts += 1
        size += len(line) + 1
    os.truncate(path, size)
    return parts


def _lines(path: Path) -> Generator[bytes, None, None]:
    """Every line that ends, without its end."""
    if path.exists():
        with path.open("rb") as file:
            yield from (line[:-1] for line in file if line.endswith(b"\n"))


def _to_json(row: Judged) -> list[Any]:
    return [
        None if row.decoding is None else asdict(row.decoding),
        row.reason,
        None if row.findings is None else [finding_to_json(f) for f in row.findings],
        row.reused,
    ]


def _judged(value: Any, where: str) -> Judged:
    decoding, reason, findings, reused = value
    return Judged(
        None if decoding is None else Decoding(**decoding),
        reason,
        None if findings is None else tuple(finding_from_json(f, where) for f in findings),
        reused,
    )


def _refused(place: Path, message: str, mend: str) -> ConfigurationError:
    return ConfigurationError([Problem(Mark(str(place)), message, mend)])
