"""Mends what has one obvious mend; every edit is checked against the text it replaces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from nae_monitor.detect.lint.diagnostics import Diagnostic, Edit
from nae_monitor.errors import Problem

_MEANT = re.compile(r"did you mean '([A-Za-z0-9_.]+)'\?")
_BAND = re.compile(r"(\d+) to (\d+)")
_KEY = re.compile(r"unknown key '([^']+)'")
_SELECTION = re.compile(r"condition, column (\d+): no selection '([^']+)'")


def edit_for(problem: Problem, lines: Sequence[str]) -> Edit | None:
    """The edit that mends ``problem``; None where a person has to decide.

    Misspelt keys and selection names are put right, and a risk score is moved to the nearer edge
    of its severity's band.
    """
    where = problem.where
    if not 1 <= where.line <= len(lines):
        return None
    line, start = lines[where.line - 1], where.column - 1
    meant = _MEANT.search(problem.mend)
    if problem.code == "NM101" and meant and (found := _KEY.search(problem.message)):
        return _edit(problem, line, start, found[1], meant[1])
    if problem.code == "NM110" and meant and (found := _SELECTION.search(problem.message)):
        name = re.compile(rf"(?<![\w*]){re.escape(found[2])}(?![\w*])")
        places = [m.start() for m in name.finditer(line, start)]
        return _edit(problem, line, places[0], found[2], meant[1]) if len(places) == 1 else None
    if problem.code == "NM312" and (band := _BAND.search(problem.mend)):
        return _score_edit(problem, line, start, int(band[1]), int(band[2]))
    return None


def _edit(problem: Problem, line: str, start: int, old: str, new: str) -> Edit | None:
    if line[start : start + len(old)] != old:
        return None
    return Edit(problem.where.file, problem.where.line, start + 1, old, new)


def _score_edit(problem: Problem, line: str, start: int, low: int, high: int) -> Edit | None:
    found = re.compile(r"risk_score:\s*(\d+)").match(line, start)
    if found is None:
        return None
    nearer = low if int(found[1]) < low else high
    return _edit(problem, line, found.start(1), found[1], str(nearer))


def fixed(text: str, diagnostics: Iterable[Diagnostic]) -> tuple[str, int]:
    """``text`` with the edits of its diagnostics applied, and how many there were."""
    lines = text.splitlines(keepends=True)
    edits = {(e.line, e.column): e for d in diagnostics if (e := d.edit) is not None}
    done = 0
    for _, edit in sorted(edits.items(), reverse=True):  # from the end: places stay true
        line, start = lines[edit.line - 1], edit.column - 1
        if line[start : start + len(edit.old)] == edit.old:
            lines[edit.line - 1] = line[:start] + edit.new + line[start + len(edit.old) :]
            done += 1
    return "".join(lines), done
