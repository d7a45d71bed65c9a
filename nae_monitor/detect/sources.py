"""Which files a list of rule paths stands for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nae_monitor.detect.packs import BUILTIN, SUFFIXES, builtin_rules_directory
from nae_monitor.errors import Mark, Problem, RuleError


def rule_files(paths: Sequence[str | Path]) -> list[Path]:
    """Every rule file under ``paths`` (files, directories, ``"builtin"``), each once, in order.

    Raises:
        RuleError: a path that is neither file nor directory, or a directory without rules.
    """
    found: dict[Path, Path] = {}
    problems: list[Problem] = []
    for path in paths:
        place = builtin_rules_directory() if str(path) == BUILTIN else Path(path)
        files = [place] if place.is_file() else _inside(place)
        if not files:
            problems.append(Problem(Mark(str(place)), "no rule file there", "rules end in .yaml"))
        for file in files:
            found.setdefault(file.resolve(), file)
    if problems:
        raise RuleError(problems)
    return list(found.values())


def _inside(directory: Path) -> list[Path]:
    return sorted(f for f in directory.rglob("*") if f.suffix in SUFFIXES and f.is_file())
