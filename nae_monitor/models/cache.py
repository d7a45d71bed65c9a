"""The cache on disk: directories that are either whole or rebuilt, under any number of processes.

A directory is built beside its place, listed in a manifest and renamed into it, so that a kill at
any moment leaves the old state or the new one. What was damaged later is found by its manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from nae_monitor.errors import Mark, ModelError, Problem

CACHE_VARIABLE = "NAE_MONITOR_CACHE"
MANIFEST = "nae_manifest.json"
LOCK_WAIT_S = 1800.0  # a slow machine may need minutes for the download alone
HASH_ALWAYS_BYTES = 16 * 1024 * 1024  # smaller files are hashed at each check, larger ones sized


def cache_directory() -> Path:
    """Where fetched and converted weights are kept: ``$NAE_MONITOR_CACHE`` or the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("nae_monitor"))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return ``target``, made by ``build`` unless a whole one is there already.

    Args:
        target: the directory wanted.
        build: fills the empty directory it is given; runs in one process at a time per target.

    Returns:
        ``target``, complete by its manifest.

    Raises:
        ModelError: the cache cannot be written, or another process held it for too long.
    """
    if is_whole(target):
        return target
    with cache_lock(target), _disk_errors(target):
        if is_whole(target):  # the process that held the lock has built it
            return target
        for stale in target.parent.glob(f".{target.name}.*.partial"):
            shutil.rmtree(stale)
        partial = target.parent / f".{target.name}.{os.getpid()}.partial"
        partial.mkdir()
        try:
            build(partial)
            _write_manifest(partial)
            if target.exists():
                shutil.rmtree(target)
            partial.replace(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def is_whole(directory: Path) -> bool:
    """Whether every file of the manifest is there with its size (small files: its hash too)."""
    try:
        listed = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return all(_matches(directory / name, entry) for name, entry in listed.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


@contextmanager
def cache_lock(target: Path) -> Iterator[None]:
    """Hold the lock file beside ``target``.

    Raises:
        ModelError: another process held it for ``LOCK_WAIT_S``, or the cache cannot be written.
    """
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.parent / f".{target.name}.lock")
        try:
            lock.acquire(timeout=LOCK_WAIT_S)
        except Timeout as error:
            raise model_error(
                target,
                f"another process has been preparing it for over {LOCK_WAIT_S:.0f} s",
                "wait for that process or end it",
            ) from error
    try:
        yield
    finally:
        lock.release()


def model_error(where: Path | str, message: str, mend: str = "") -> ModelError:
    """A :class:`ModelError` with one problem."""
    return ModelError([Problem(Mark(str(where)), message, mend)])


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise model_error(
            target,
            f"the cache cannot be written: {error.strerror or type(error).__name__}",
            f"free some space or set {CACHE_VARIABLE} to another directory",
        ) from error


def _write_manifest(directory: Path) -> None:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    listed = {}
    for path in files:
        _flush(path)
        name = path.relative_to(directory).as_posix()
        listed[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps(listed, indent=1), encoding="utf-8")
    _flush(manifest)


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _matches(path: Path, entry: dict[str, object]) -> bool:
    size = path.stat().st_size
    if size != entry["bytes"]:
        return False
    return size > HASH_ALWAYS_BYTES or sha256_file(path) == entry["sha256"]
