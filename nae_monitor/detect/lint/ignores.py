"""Inline ``# nae: ignore[NM204]``: on the line of the diagnostic, or alone on the line above it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from nae_monitor.detect.lint.diagnostics import Diagnostic, diagnose
from nae_monitor.errors import Mark

_IGNORE = re.compile(r"(?:^|\s)#\s*nae:\s*ignore\[([A-Z0-9,\s]{1,200})\]")


def without_ignored(
    found: Iterable[Diagnostic], sources: Mapping[str, str]
) -> tuple[list[Diagnostic], int]:
    """What is left of ``found``, plus a note for each ignore without effect; and the number taken.

    Errors cannot be ignored: the rule would not load all the same.

    Args:
        found: the diagnostics of all files.
        sources: the text of each file, by the name its marks carry.
    """
    ignores = {name: _ignores(text) for name, text in sources.items()}
    used: set[tuple[str, int, str]] = set()
    kept: list[Diagnostic] = []
    ignored = 0
    for diagnostic in found:
        where = diagnostic.where
        written = ignores.get(where.file, {}).get((where.line, diagnostic.code))
        if written is None or diagnostic.level == "error":
            kept.append(diagnostic)
        else:
            used.add((where.file, written, diagnostic.code))
            ignored += 1
    for name, places in ignores.items():
        for (_, code), line in places.items():
            if (name, line, code) not in used:
                kept.append(_unneeded(name, line, code))
    return kept, ignored


def _ignores(text: str) -> dict[tuple[int, str], int]:
    """Line the comment covers and code -> line it is written on."""
    found: dict[tuple[int, str], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        for match in _IGNORE.finditer(line):
            alone = not line[: match.start()].strip()
            for code in match[1].split(","):
                if code.strip():
                    found[number + 1 if alone else number, code.strip()] = number
    return found


def _unneeded(name: str, line: int, code: str) -> Diagnostic:
    message = f"nothing on its line raises {code}"
    return diagnose("NM104", Mark(name, line, 1), message, "remove the comment")
