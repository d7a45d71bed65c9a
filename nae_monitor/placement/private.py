"""Directories of sockets that only their user may enter."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nae_monitor.errors import ConfigurationError, Mark, Problem

MODE = 0o700


def make_private(directory: Path) -> None:
    """Create a directory for this user alone, or see that it is one.

    Raises:
        ConfigurationError: it cannot be made, is another user's, or others may enter it.
    """
    try:
        directory.mkdir(mode=MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise _fault(directory, f"cannot be made: {error.strerror}", "name another") from error
    check_private(directory)


def check_private(directory: Path) -> None:
    """See that only this user may enter a directory.

    Raises:
        ConfigurationError: it is missing, is another user's, or others may enter it.
    """
    try:
        found = directory.stat(follow_symlinks=False)
    except OSError as error:
        mend = "start the worker first: nae-monitor worker"
        raise _fault(directory, f"cannot be looked at: {error.strerror}", mend) from error
    if not stat.S_ISDIR(found.st_mode):
        raise _fault(directory, "is not a directory", "name one that is only for sockets")
    if found.st_uid != os.geteuid():
        raise _fault(directory, "is another user's", "run worker and server as the same user")
    if found.st_mode & 0o077:
        raise _fault(directory, "may be entered by others", f"chmod 700 {directory}")


def _fault(directory: Path, message: str, mend: str) -> ConfigurationError:
    return ConfigurationError([Problem(Mark(str(directory)), message, mend)])
