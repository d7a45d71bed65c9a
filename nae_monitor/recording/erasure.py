"""Requests taken out of a recording for good, without ever leaving it half done.

Every file that changes is written anew beside the old one; then a marker lists what is to be put
in place and what is to go, and only then is that done. Broken off before the marker, nothing has
happened; after it, the next call does the rest, and until then readers refuse the recording.
What a file system or its backups keep of files that were removed is out of reach.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nae_monitor.errors import RecordingError
from nae_monitor.recording.doomed import Doomed, Erased
from nae_monitor.recording.findings import canonical_line
from nae_monitor.recording.parts import SealedTable
from nae_monitor.recording.reader import Recording
from nae_monitor.recording.redo import RESUME, Change, commit, finish_erasure
from nae_monitor.recording.rotation import parquet_bytes
from nae_monitor.recording.sealing import (
    FINDINGS,
    MANIFEST,
    SEALS,
    STOPS,
    Seal,
    Totals,
    parse_json,
    read_bytes,
    read_lines,
    seal_line,
    sync_directory,
)

ALERTS = "alerts.jsonl"  # of a replayed run
_LINES = (FINDINGS, STOPS, ALERTS)
_KEYS = ["request_id", "group_id", "tenant", "started_unix_ns"]


def erase(directory: Path | str, doomed: Doomed, *, dry_run: bool = False) -> Erased:
    """Take requests out of one recording or replayed run; says what went.

    The manifest notes when this was done and how much went, and names nobody.

    Raises:
        RecordingError: it is being written, or is damaged; then nothing was changed.
            Of a directory that holds only the progress of a replay: the replay is running.
        OSError: the disk refuses; then nothing was changed, or the next call finishes.
    """
    place = Path(directory)
    if not (place / MANIFEST).exists() and (place / RESUME).exists():
        return Erased(place, 0, replays=_end_replay(place, dry_run=dry_run))
    with _alone(place):
        if not dry_run:
            finish_erasure(place)
        # It may hold what is to go, and could not go on with what is left anyway.
        replays = _end_replay(place, dry_run=dry_run)
        recording = Recording.open(place)
        change, erased = _change(recording, _found(recording, doomed), replays)
        if not dry_run and (change.put or change.gone):
            commit(place, change)
    return erased


def erase_all(
    paths: Iterable[Path | str], doomed: Doomed, *, dry_run: bool = False
) -> Iterator[Erased]:
    """:func:`erase` over recordings and directories of them, one after the other.

    Raises:
        RecordingError: as :func:`erase`, or a directory with no recording in it.
        OSError: as :func:`erase`.
    """
    for given in paths:
        path = Path(given)
        # What a replay that was broken off early left has no manifest yet, and decodes already.
        inner = sorted(
            {one.parent for name in (MANIFEST, RESUME) for one in path.glob(f"*/{name}")}
        )
        single = (path / MANIFEST).exists() or (path / RESUME).exists() or not inner
        for place in [path] if single else inner:
            yield erase(place, doomed, dry_run=dry_run)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the lock that a writer holds; RecordingError where one does."""
    if not (directory / MANIFEST).exists():
        raise RecordingError(f"{directory}: no {MANIFEST}: only recordings can be erased from")
    descriptor = os.open(directory / SEALS, os.O_RDWR | os.O_CREAT, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RecordingError(f"{directory}: is being written; erase once it is closed") from None
    finally:
        os.close(descriptor)


def _end_replay(directory: Path, *, dry_run: bool) -> int:
    """Remove the progress of a replay that was broken off; how many there are, 0 or 1."""
    progress = directory / RESUME
    if dry_run or not progress.exists():
        return int(progress.exists())
    descriptor = os.open(progress / "lock", os.O_RDWR | os.O_CREAT, 0o640)  # as a replay holds it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(progress)
        sync_directory(directory)
    except BlockingIOError:
        raise RecordingError(
            f"{directory}: a replay is writing it; erase once it is done"
        ) from None
    finally:
        os.close(descriptor)
    return 1


@dataclass(frozen=True, slots=True)
class _Found:
    ids: Collection[str]  # of the requests that go
    orphans: int  # of them
    orphans_left: int


def _found(recording: Recording, doomed: Doomed) -> _Found:
    found: set[str] = set()
    latest: dict[str, int] = {}
    for part in _parts(recording):
        for row in part.table(_KEYS).to_pylist():
            name, began = row["request_id"], row["started_unix_ns"]
            latest[name] = max(began, latest.get(name, 0))
            if doomed.fits(row):
                found.add(name)
    if (limit := doomed.begun_before_unix_ns) is not None:
        found |= {name for name, began in latest.items() if 0 < began < limit}
    # After a crash, what was found in a request may be all that is left of it; neither its group
    # nor its tenant is known then.
    orphans = {
        _request_id(line, where) for name in _LINES for line, where in _read(recording, name)
    } - latest.keys()
    going = {name for name in orphans if doomed.may_name(name)}
    return _Found(found | going, len(going), len(orphans - going))


def _parts(recording: Recording) -> list[SealedTable]:
    parts: list[Any] = [*recording.activation_parts, *recording.request_parts]
    return [part for part in parts if isinstance(part, SealedTable)]


def _change(recording: Recording, found: _Found, replays: int) -> tuple[Change, Erased]:
    """What is to be done, nothing where no byte has to go; and what that takes out."""
    directory, change, ids = recording.path, Change(), found.ids
    seals: list[Seal | Totals] = []
    rows = {"activations": 0, "requests": 0}
    kept = {"activations": 0, "requests": 0}
    for part in _parts(recording):
        kind = part.name.partition("-")[0]
        seal, removed = _rewritten(part, ids, change)
        rows[kind] += removed
        kept[kind] += part.rows - removed
        seals += [seal] if seal is not None else []
    change.gone += recording.unfinished
    lines = {name: _without(recording, name, ids, change) for name in _LINES}
    erased = Erased(
        directory,
        len(ids),
        rows["activations"],
        rows["requests"],
        lines[FINDINGS],
        lines[STOPS],
        lines[ALERTS],
        found.orphans,
        found.orphans_left,
        replays,
    )
    if not (change.put or change.gone):
        return change, erased
    totals = recording.totals
    if totals is not None:
        seals.append(_totals(totals, directory, change, kept))
    text = "".join(f"{seal_line(seal)}\n" for seal in seals)
    change.put[SEALS] = text.encode("ascii")
    change.put[MANIFEST] = _noted(recording.manifest, erased)
    return change, erased


def _rewritten(part: SealedTable, ids: Collection[str], change: Change) -> tuple[Seal | None, int]:
    """A file's seal once the rows of ``ids`` are out of it, None if none is left; rows removed."""
    names = part.table(["request_id"]).column("request_id").to_pylist()
    stay = [row for row, name in enumerate(names) if name not in ids]
    if len(stay) == len(names):
        return part.seal, 0
    if part.path.name != part.name:  # sealed but not yet renamed when its writer died
        change.gone.append(part.path.name)
    if not stay:
        change.gone.append(part.name)
        return None, len(names)
    data = part.cipher.file(part.name, parquet_bytes(part.table().take(stay)))
    change.put[part.name] = data
    seal = Seal(part.name, len(stay), len(data), hashlib.sha256(data).hexdigest())
    return seal, len(names) - len(stay)


def _without(recording: Recording, name: str, ids: Collection[str], change: Change) -> int:
    """Take the lines of ``ids`` out of a file, and one without an end; returns how many."""
    lines = list(_read(recording, name))
    stay = [line for line, where in lines if _request_id(line, where) not in ids]
    if len(stay) < len(lines) or _is_torn(recording.path / name):
        if name != ALERTS:
            stay = [recording.cipher.line(name, n, line) for n, line in enumerate(stay)]
        change.put[name] = "".join(f"{line}\n" for line in stay).encode("utf-8")
    return len(lines) - len(stay)


def _is_torn(path: Path) -> bool:
    """Whether the last line was not written whole: nobody can tell whose it is."""
    return path.exists() and read_lines(path)[1]


def _read(recording: Recording, name: str) -> Iterator[tuple[str, str]]:
    """Each whole line of a file in the clear, if it is there, and where it stands."""
    path = recording.path / name
    for number, line in enumerate(read_lines(path)[0] if path.exists() else ()):
        where = f"{path}:{number + 1}"
        yield (
            line if name == ALERTS else recording.cipher.open_line(name, number, line, where),
            where,
        )


def _request_id(line: str, where: str) -> Any:
    value = parse_json(line, where)
    if not isinstance(value, dict) or not isinstance(value.get("request_id"), str):
        raise RecordingError(f"{where}: names no request")
    return value["request_id"]


def _totals(totals: Totals, directory: Path, change: Change, kept: Mapping[str, int]) -> Totals:
    def data(name: str) -> bytes:
        return change.put[name] if name in change.put else read_bytes(directory / name)

    found = data(FINDINGS)
    changed = replace(
        totals,
        activations=kept["activations"],
        requests=kept["requests"],
        findings=found.count(b"\n"),
        findings_sha256=hashlib.sha256(found).hexdigest(),
    )
    if not totals.stops_sha256:  # format 1
        return changed
    stops = data(STOPS)
    digest = hashlib.sha256(stops).hexdigest()
    return replace(changed, stops=stops.count(b"\n"), stops_sha256=digest)


def _noted(manifest: Mapping[str, Any], erased: Erased) -> bytes:
    before = manifest.get("erasures")
    counts = {name: n for name, n in asdict(erased).items() if name != "directory"}
    note = {"time_unix_ns": time.time_ns(), **counts}
    notes = [*(before if isinstance(before, list) else []), note]
    return (canonical_line({**manifest, "erasures": notes}) + "\n").encode("ascii")
