"""Directories that are written to, the space there, and the key that hashes content."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nae_monitor.cli.checks.check import Check
from nae_monitor.errors import ConfigurationError
from nae_monitor.models import cache_directory
from nae_monitor.recording.encryption import KEY_VARIABLE, writing_cipher
from nae_monitor.settings import PrivacySettings, RecordSettings, Settings

GIB = 1024**3
LITTLE_BYTES = 2 * GIB
TOO_LITTLE_BYTES = GIB // 5


def places(settings: Settings) -> Iterator[Check]:
    """The model cache, the recording directory, and the keys that encrypt and hash."""
    yield directory("cache", cache_directory())
    if settings.record.dir is not None:
        yield directory("recordings", Path(settings.record.dir))
        yield _encryption(settings.record)
    yield _privacy(settings.privacy)


def directory(name: str, place: Path) -> Check:
    """That a directory can be written, or made, and how much space it has."""
    existing = next(p for p in (place, *place.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free_bytes = shutil.disk_usage(existing).free
    except OSError as error:
        mend = "name a directory that this user may write"
        return Check(name, "fault", f"{place} cannot be written: {error.strerror}", mend)
    message = f"{place}, {free_bytes / GIB:.1f} GiB free"
    if free_bytes < TOO_LITTLE_BYTES:
        return Check(name, "fault", message, "free some space")
    if free_bytes < LITTLE_BYTES:
        return Check(name, "warning", message, "free some space")
    return Check(name, "ok", message)


def _encryption(record: RecordSettings) -> Check:
    if not record.encrypt:
        return Check("encryption", "ok", "recordings are not encrypted")
    try:
        writing_cipher(0)
    except ConfigurationError as error:
        (problem,) = error.problems
        return Check("encryption", "fault", problem.message, problem.mend)
    return Check("encryption", "ok", f"recordings are encrypted under {KEY_VARIABLE}")


def _privacy(privacy: PrivacySettings) -> Check:
    if privacy.content == "full":
        message = "content is full: prompts, replies and decoded text leave in alerts"
        return Check("privacy", "warning", message, "set privacy.content to hash")
    if privacy.content == "hash" and not os.environ.get(privacy.key_env):
        message = f"{privacy.key_env} is not set: hashes of two runs cannot be compared"
        return Check("privacy", "warning", message, f"export {privacy.key_env} from a secret")
    return Check("privacy", "ok", f"content: {privacy.content}")
