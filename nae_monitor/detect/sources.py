"""Which files a list of rule paths stands for; what cannot be one is a problem and no silence."""

from __future__ import annotations

import errno
import importlib.resources
import itertools
import stat
from collections.abc import Sequence
from pathlib import Path

from nae_monitor.errors import Mark, Problem, RuleError

BUILTIN = "builtin"
SUFFIXES = (".yaml", ".yml")
MAX_FILES = 10_000
MAX_ENTRIES = 100_000  # of all directories together, rule files or not


def builtin_rules_directory() -> Path:
    """The shipped packs: ``nae_monitor/rules`` where installed, ``rules/`` in a checkout."""
    installed = importlib.resources.files("nae_monitor").joinpath("rules")
    if isinstance(installed, Path) and installed.is_dir():
        return installed
    return Path(__file__).resolve().parents[2] / "rules"


def rule_files(paths: Sequence[str | Path]) -> list[Path]:
    """Every rule file under ``paths`` (files, directories, ``"builtin"``), each once, in order.

    Raises:
        RuleError: a path that is neither file nor directory, or a directory without rules.
    """
    problems: list[Problem] = []
    found = {}
    for path in paths:
        inside: list[Problem] = []
        files = found_files([path], inside)
        found.update({file.resolve(): file for file in files if file.resolve() not in found})
        problems += inside if not files else []
    if problems:
        raise RuleError(problems)
    return list(found.values())


def found_files(paths: Sequence[str | Path], problems: list[Problem]) -> list[Path]:
    """As :func:`rule_files`; what is wrong with a path or an entry is added to ``problems``.

    Links to files are followed, links to directories are not. Hidden entries that are no regular
    files (an editor's locks) are passed over; others with a rule file's ending are problems.
    """
    found: dict[Path, Path] = {}  # by resolved path: overlapping paths load a file once
    for path in paths:
        place = builtin_rules_directory() if str(path) == BUILTIN else Path(path)
        files = _files_at(place, problems)
        found.update({file.resolve(): file for file in files if file.resolve() not in found})
    if len(found) > MAX_FILES:
        mend = "name a narrower directory"
        problems.append(Problem(Mark(str(paths[0])), f"{len(found)} rule files", mend))
        return []
    return list(found.values())


def _files_at(place: Path, problems: list[Problem]) -> list[Path]:
    try:
        mode = _mode(place)
    except OSError as error:
        problems.append(Problem(Mark(str(place)), f"cannot be reached: {error.strerror}", ""))
        return []
    if stat.S_ISREG(mode):
        return [place]
    if not stat.S_ISDIR(mode):
        message = "is no regular file" if mode else "no such rule file or directory"
        problems.append(Problem(Mark(str(place)), message, f"give a path or {BUILTIN!r}"))
        return []
    before = len(problems)
    files = _inside(place, problems)
    if not files and len(problems) == before:
        problems.append(Problem(Mark(str(place)), "holds no rule file", "rules end in .yaml"))
    return files


def _inside(place: Path, problems: list[Problem]) -> list[Path]:
    files: list[Path] = []
    waiting, entries = [str(place)], 0
    while waiting:
        directory = waiting.pop()
        try:
            inside = list(itertools.islice(Path(directory).iterdir(), MAX_ENTRIES + 1))
        except OSError as error:
            message = f"cannot be listed: {error.strerror}"
            problems.append(Problem(Mark(directory), message, "mend it or move it away"))
            continue
        entries += len(inside)
        if entries > MAX_ENTRIES:
            message = f"holds more than {MAX_ENTRIES} entries"
            problems.append(Problem(Mark(str(place)), message, "name a narrower directory"))
            return []
        for entry in inside:
            _sort_in(entry, files, waiting, problems)
    return sorted(files)


def _sort_in(
    entry: Path, files: list[Path], directories: list[str], problems: list[Problem]
) -> None:
    ruled = entry.suffix in SUFFIXES
    try:
        mode = _mode(entry)
    except OSError as error:
        message = f"cannot be reached: {error.strerror}"
        problems.append(Problem(Mark(str(entry)), message, "mend it or move it away"))
        return
    if ruled and stat.S_ISREG(mode):
        files.append(entry)
    elif ruled and not entry.name.startswith("."):
        problems.append(Problem(Mark(str(entry)), "is no regular file", "move it away"))
    elif stat.S_ISDIR(mode) and not entry.is_symlink():
        directories.append(str(entry))


def _mode(place: Path) -> int:
    """The kind of what is there, links followed; 0: nothing, or a link to nothing."""
    try:
        return place.stat().st_mode
    except ValueError:  # a name with a NUL
        return 0
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise
