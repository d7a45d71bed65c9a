"""Files of a run: written beside their place and renamed, so that a kill or a full disk keeps
the old one; what cannot be written ends in one clear error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from nae_monitor.errors import ConfigurationError, Mark, Problem

MEND = "free some space or name another directory; the same command then resumes"


def make_directory(path: Path) -> Path:
    """Create ``path`` and its parents.

    Raises:
        ConfigurationError: it cannot be created.
    """
    with write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; it takes the place of ``path`` when the block ends well.

    Raises:
        ConfigurationError: the block or the renaming failed to write; ``path`` is as it was.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        with write_errors(path):
            yield temporary
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn a failed write into a ConfigurationError that names ``path``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(
            [Problem(Mark(str(path)), f"cannot be written: {why}", MEND)]
        ) from (error)
