"""The canonical order of a rule file's keys; lines are moved, never rewritten."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import yaml

from nae_monitor.errors import ConfigurationError
from nae_monitor.strict_yaml import read_documents

# The one that read_documents uses: the pure one refuses other texts.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
KEY_ORDER = (
    "schema_version",
    "list",  # these three name what the document is
    "macro",
    "override",
    "title",
    "id",
    "name",
    "version",
    "related",
    "status",
    "severity",
    "risk_score",
    "description",
    "author",
    "date",
    "references",
    "tags",
    "falsepositives",
    "guide",
    "enabled",
    "enforcement",
    "required_engine_version",
    "required_nla",
    "scope",
    "detection",
    "aggregation",
    "filter",
    "items",
    "selection",
    "exceptions",
    "fidelity",
    "suppress",
    "actions",
    "tests",
)


def laid_out(text: str, name: str) -> str:
    """``text`` with the keys of each document in canonical order and the condition behind its
    selections.

    Comments stay with the key they stand above or behind. Documents written as one ``{...}`` stay
    as they are, and so does a file whose meaning the new order would change.

    Raises:
        ConfigurationError: it is not YAML this package reads.
    """
    before = [document.value for document in read_documents(name, text)]
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    for root in list(yaml.compose_all(text, Loader=_LOADER)):
        if isinstance(root, yaml.MappingNode):
            for key, value in root.value:
                if key.value == "detection" and isinstance(value, yaml.MappingNode):
                    _reorder(lines, value, lambda name: name == "condition")
            _reorder(lines, root, _rank)
    result = "".join(lines)
    try:
        after = [document.value for document in read_documents(name, result)]
    except ConfigurationError:
        return text
    return result if after == before else text


def _rank(key: str) -> int:
    return KEY_ORDER.index(key) if key in KEY_ORDER else len(KEY_ORDER)


def _reorder(lines: list[str], node: Any, rank: Any) -> None:
    """Put the keys of one block mapping in order of ``rank``; equal ones keep theirs."""
    keys = [key for key, _ in node.value]
    if node.flow_style or len(keys) < 2:
        return
    column = keys[0].start_mark.column
    starts = [key.start_mark.line for key in keys]
    if any(lines[line][:column].strip() for line in starts):  # behind `---` or `- `
        return
    starts = [_with_comments(lines, line, column) for line in starts]
    end = _content_end(lines, starts[-1], node.end_mark.line, column)
    edges = [*starts, end]
    chunks = [lines[a:b] for a, b in itertools.pairwise(edges)]
    order = sorted(range(len(keys)), key=lambda i: rank(keys[i].value))
    if order != list(range(len(keys))):
        lines[starts[0] : end] = [line for i in order for line in chunks[i]]


def _with_comments(lines: Sequence[str], line: int, column: int) -> int:
    """The first of the comment lines that stand directly above a key, at its column."""
    while line > 0 and lines[line - 1].startswith(" " * column + "#"):
        line -= 1
    return line


def _content_end(lines: Sequence[str], start: int, end: int, column: int) -> int:
    """Where the last key's lines end: blank lines and comments behind it stay where they are."""
    end = min(end, len(lines))
    while end > start + 1 and _is_outside(lines[end - 1], column):
        end -= 1
    return end


def _is_outside(line: str, column: int) -> bool:
    bare = line.strip()
    return not bare or (bare.startswith("#") and len(line) - len(line.lstrip()) <= column)
