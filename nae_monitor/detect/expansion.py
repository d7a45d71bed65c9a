"""Puts lists and macros in where a document refers to them, within bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nae_monitor.detect.reading import Reader
from nae_monitor.detect.schema import SCHEMA_VERSION
from nae_monitor.errors import Mark, Problem
from nae_monitor.strict_yaml import Document, KeyPath, nearest

MAX_EXPANDED = 20_000  # values put into one document
MAX_NESTING = 8  # macros inside one another
_UNRESOLVED: Mapping[str, Any] = {"list": ["unresolved"], "macro": {"regex": ["unresolved"]}}


@dataclass(slots=True)
class Parts:
    """Lists and macros by name, put in where documents refer to them."""

    problems: list[Problem]
    _known: dict[tuple[str, str], tuple[Document, KeyPath]] = field(default_factory=dict)
    _left: int = 0

    def define(self, kind: str, document: Document) -> None:
        """Take a list or a macro; its faults become problems."""
        reader = Reader(document, (), self.problems)
        check_version(reader)
        name = reader.text(kind, max_chars=64)
        body = "items" if kind == "list" else "selection"
        for key in ("title", "description"):
            reader.has(key)
        if not reader.has(body):
            reader.fault(None, f"the {kind} lacks its {body}", f"add `{body}: …`")
        elif kind == "list" and not reader.texts(body):
            reader.fault(body, "the list is empty", "give it an item")
        elif kind == "macro":
            reader.child(body)
        if name and (kind, name) in self._known:
            where = self._known[kind, name][0].mark((kind,))
            reader.fault(kind, f"{kind} {name!r} is already that of {where}", "rename one", "NM102")
        reader.finish()
        if isinstance(document.value.get(body), list if kind == "list" else dict):
            self._known.setdefault((kind, name), (document, (body,)))

    def report_unused_faults(self) -> None:
        """References inside macros that no rule uses are checked too."""
        for (kind, _), (document, path) in self._known.items():
            if kind == "macro":
                for name in _references(value_at(document, path)):
                    if name not in self._known:
                        self._unknown(name, document.mark(path))

    def expand(self, document: Document) -> Document:
        """The document with every reference replaced by what it stands for."""
        value = document.value
        if not isinstance(value, dict):
            return document
        parts = [key for key in ("detection", "exceptions") if any(_references(value.get(key)))]
        if not parts:
            return document
        self._left = MAX_EXPANDED
        marks = {
            path: mark
            for path, mark in document.marks.items()
            if path[:1] not in {(p,) for p in parts}
        }
        built = {key: self._build(document, (key,), (key,), marks, 0) for key in parts}
        if self._left < 0:
            message = f"its lists and macros hold more than {MAX_EXPANDED} values"
            self.problems.append(Problem(document.mark(), message, "shorten them"))
        return Document({**value, **built}, marks, document.file)

    def _build(
        self,
        source: Document,
        path: KeyPath,
        place: KeyPath,
        marks: dict[KeyPath, Mark],
        depth: int,
    ) -> Any:
        marks[place] = source.mark(path)
        self._left -= depth > 0
        value = value_at(source, path)
        reference = _reference(value)
        if reference is not None and reference[0] == "macro":
            found = self._find(reference, source.mark(path), depth)
            if found is None:
                return _UNRESOLVED["macro"]
            return self._build(*found, place, marks, depth + 1)
        if isinstance(value, dict):
            return {
                key: self._build(source, (*path, key), (*place, key), marks, depth) for key in value
            }
        if not isinstance(value, list):
            return value
        items: list[Any] = []
        for index, item in enumerate(value):
            inner = _reference(item)
            if inner is None or inner[0] != "list":
                here = (*place, len(items))
                items.append(self._build(source, (*path, index), here, marks, depth))
                continue
            where = source.mark((*path, index))
            for one in self._items(inner, where, depth):
                marks[(*place, len(items))] = where
                items.append(one)
        return items

    def _items(self, reference: tuple[str, str], where: Mark, depth: int) -> list[Any]:
        found = self._find(reference, where, depth)
        if found is None:
            return list(_UNRESOLVED["list"])
        items = value_at(*found)
        self._left -= len(items)
        return [item for item in items if isinstance(item, str)] if self._left >= 0 else []

    def _find(
        self, reference: tuple[str, str], where: Mark, depth: int
    ) -> tuple[Document, KeyPath] | None:
        if depth >= MAX_NESTING:
            message = f"macros inside one another more than {MAX_NESTING} deep"
            self.problems.append(Problem(where, message, "a macro may not use itself"))
            return None
        found = self._known.get(reference)
        if found is None:
            self._unknown(reference, where)
        return found if self._left >= 0 else None

    def _unknown(self, reference: tuple[str, str], where: Mark) -> None:
        kind, name = reference
        hint = nearest(name, [known for k, known in self._known if k == kind])
        self.problems.append(Problem(where, f"no {kind} {name[:64]!r}", hint, "NM110"))


def _reference(value: Any) -> tuple[str, str] | None:
    """Kind and name, where a value is a mapping such as ``{list: NAME}``."""
    if isinstance(value, dict) and len(value) == 1:
        ((key, name),) = value.items()
        if key in ("list", "macro") and isinstance(name, str):
            return key, name
    return None


def _references(value: Any) -> Iterator[tuple[str, str]]:
    found = _reference(value)
    if found is not None:
        yield found
    elif isinstance(value, dict):
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def check_version(reader: Reader) -> None:
    """Report a schema version that is not ours."""
    if reader.integer("schema_version", 0, 10**6) != SCHEMA_VERSION:
        key = "schema_version" if "schema_version" in reader.value else None
        reader.fault(key, "schema_version must be 1", f"write `schema_version: {SCHEMA_VERSION}`")


def value_at(document: Document, path: KeyPath) -> Any:
    """The value at a key path, which must be there."""
    value = document.value
    for step in path:
        value = value[step]
    return value
