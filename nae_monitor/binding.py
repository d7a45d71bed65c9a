"""Bind a strict YAML document to a tree of frozen dataclasses, every problem found at once."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from nae_monitor.errors import ConfigurationError, Problem
from nae_monitor.strict_yaml import Document, KeyPath, nearest, shown

T = TypeVar("T")


def bind(document: Document, cls: type[T], path: KeyPath = ()) -> T:
    """Build ``cls`` from the value at ``path``.

    Supports str, int, float, bool, Literal, X | None, tuple[X, ...], Mapping[str, X] and nested
    dataclasses.
    A dataclass may check itself in ``__post_init__`` by raising ValueError.

    Raises:
        ConfigurationError: every unknown key, missing key and wrong type, with its place.
    """
    binder = _Binder(document)
    value = binder.build(cls, _at(document, path), path)
    if binder.problems:
        raise ConfigurationError(binder.problems)
    return cast(T, value)


@dataclasses.dataclass(frozen=True, slots=True)
class Kinds:
    """A list of named things with options, as far as it could be read."""

    items: list[tuple[str, Any]]  # name, its options record
    problems: list[Problem]


def bind_kinds(
    document: Document,
    path: KeyPath,
    what: str,
    options: Mapping[str, type],
    short: Mapping[str, str],
) -> Kinds:
    """Bind a list whose items are a name, or a mapping of one name to its options.

    Args:
        document: the whole document.
        path: of the list in it.
        what: an item is, for messages.
        options: the options' dataclass by name.
        short: by name, the option that a plain text stands for.
    """
    value, found = _at(document, path), Kinds([], [])
    if not isinstance(value, list):
        mend = f"write [{next(iter(options))}, …]"
        found.problems.append(Problem(document.mark(path), f"{path[-1]} must be a list", mend))
        return found
    for index, item in enumerate(value):
        place = (*path, index)
        name, given = next(iter(item.items())) if _is_single(item) else (item, None)
        if not isinstance(name, str) or name not in options:
            where, hint = document.mark(place), nearest(str(name), options)
            found.problems.append(Problem(where, f"unknown {what} {shown(name)}", hint))
        else:
            _bind_item(document, (*place, name), name, given, options[name], short, found)
    return found


def _is_single(item: Any) -> bool:
    return isinstance(item, dict) and len(item) == 1


def _bind_item(
    document: Document,
    path: KeyPath,
    name: str,
    given: Any,
    cls: type,
    short: Mapping[str, str],
    found: Kinds,
) -> None:
    if name in short and isinstance(given, str):
        given = {short[name]: given}
    size = len(path)
    marks = {key[size:]: mark for key, mark in document.marks.items() if key[:size] == path}
    moved = {("options", *key): mark for key, mark in marks.items()}
    moved[("options",)] = document.mark(path)
    place = Document({"options": given}, moved, document.file)
    try:
        found.items.append((name, bind(place, cls, ("options",))))
    except ConfigurationError as error:
        found.problems.extend(error.problems)


def _at(document: Document, path: KeyPath) -> Any:
    value = document.value
    for step in path:
        value = value[step]
    return value


class _Binder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []

    def problem(self, path: KeyPath, message: str, mend: str = "") -> None:
        self.problems.append(Problem(self.document.mark(path), message, mend))

    def build(self, hint: Any, value: Any, path: KeyPath) -> Any:
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self._dataclass(hint, value, path)
        origin = get_origin(hint)
        if origin in (Union, types.UnionType):
            return self._optional(hint, value, path)
        if origin is Literal:
            return self._literal(get_args(hint), value, path)
        if origin is tuple:
            return self._tuple(get_args(hint)[0], value, path)
        if origin is Mapping:
            return self._mapping(get_args(hint)[1], value, path)
        return self._scalar(hint, value, path)

    def _mapping(self, item: Any, value: Any, path: KeyPath) -> Any:
        if not isinstance(value, dict):
            return self.problem(path, f"{path[-1]} must be a mapping", "write `name: value` lines")
        return {key: self.build(item, v, (*path, key)) for key, v in value.items()}

    def _dataclass(self, cls: type, value: Any, path: KeyPath) -> Any:
        name = ".".join(str(p) for p in path) or "the file"
        if value is None:
            value = {}
        if not isinstance(value, dict):
            return self.problem(path, f"{name} must be a mapping", "write `key: value` lines")
        hints = get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key in value:
            if key not in fields:
                self.problem(
                    (*path, key), f"unknown key {shown(key)} in {name}", nearest(key, fields)
                )
        before = len(self.problems)
        kept: dict[str, Any] = {}
        for key, spec in fields.items():
            if key in value:
                kept[key] = self.build(hints[key], value[key], (*path, key))
            elif (
                spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
            ):
                self.problem(path, f"{name} lacks the key {key!r}", f"add `{key}: …`")
        if len(self.problems) > before:
            return None
        try:
            return cls(**kept)
        except ValueError as error:
            return self.problem(path, f"{name}: {error}")

    def _optional(self, hint: Any, value: Any, path: KeyPath) -> Any:
        options = [h for h in get_args(hint) if h is not type(None)]
        if value is None:
            return None
        return self.build(options[0], value, path)

    def _literal(self, allowed: tuple[Any, ...], value: Any, path: KeyPath) -> Any:
        if value not in allowed:
            choices = ", ".join(str(a) for a in allowed)
            return self.problem(path, f"{path[-1]} is {shown(value)}", f"one of: {choices}")
        return value

    def _tuple(self, item: Any, value: Any, path: KeyPath) -> Any:
        if not isinstance(value, list):
            return self.problem(path, f"{path[-1]} must be a list", "write it as [a, b]")
        return tuple(self.build(item, v, (*path, i)) for i, v in enumerate(value))

    def _scalar(self, hint: Any, value: Any, path: KeyPath) -> Any:
        if hint is Any:
            return value
        if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
            return self._number(value, path)
        if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
            return value
        return self.problem(path, f"{path[-1]} is {shown(value)}", f"expected {hint.__name__}")

    def _number(self, value: int | float, path: KeyPath) -> Any:
        """A finite float: NaN would pass every check of a range."""
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
        return self.problem(path, f"{path[-1]} is {shown(value)}", "expected a finite number")
