"""Several files of a recording changed as one: all of them, or none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nae_monitor.recording.findings import canonical_line
from nae_monitor.recording.parts import refusing
from nae_monitor.recording.sealing import (
    ERASURE,
    parse_json,
    read_bytes,
    sync_directory,
    write_whole,
)

STAGED_SUFFIX = ".erasing"
RESUME = ".resume"  # of a replay that was broken off


@dataclass(slots=True)
class Change:
    """Files to be put in place of others, and files to go."""

    put: dict[str, bytes] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)


def commit(directory: Path, change: Change) -> None:
    """Make a change, or leave what :func:`finish_erasure` needs to. Raises OSError."""
    for name, data in change.put.items():
        write_whole(directory / f"{name}{STAGED_SUFFIX}", data)
    marker = canonical_line({"put": sorted(change.put), "gone": sorted(change.gone)})
    staged = directory / f"{ERASURE}{STAGED_SUFFIX}"
    write_whole(staged, marker.encode("ascii"))
    sync_directory(directory)
    staged.replace(directory / ERASURE)
    sync_directory(directory)
    finish_erasure(directory)


def finish_erasure(directory: Path) -> bool:
    """Do what is left of an erasure that was broken off; False where there was none.

    Raises:
        RecordingError: a marker that no erasure of this package wrote.
        OSError: the disk refuses.
    """
    marker = directory / ERASURE
    if not marker.exists():
        for staged in directory.glob(f"*{STAGED_SUFFIX}"):
            staged.unlink()
        return False
    value = parse_json(read_bytes(marker).decode("utf-8", "replace"), str(marker))
    with refusing(marker):
        put, gone = ([_plain_name(name) for name in value[key]] for key in ("put", "gone"))
    for name in put:
        staged = directory / f"{name}{STAGED_SUFFIX}"
        if staged.exists():
            staged.replace(directory / name)
    for name in gone:
        (directory / name).unlink(missing_ok=True)
    sync_directory(directory)
    marker.unlink()
    sync_directory(directory)
    return True


def _plain_name(name: Any) -> str:
    if not isinstance(name, str) or Path(name).name != name or name.startswith("."):
        raise ValueError("a marker names files of its own directory")
    return name
