"""Safe YAML with places: plain values beside a map from key path to file:line:column.

Aliases, duplicate keys, oversize and over-deep files, files of too many values and numbers of too
many digits are refused, so that no document can expand into more than its own size or take more
than seconds (YAML 1.1 as PyYAML's C loader reads it).
"""

from __future__ import annotations

import difflib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nae_monitor.errors import ConfigurationError, Mark, Problem

KeyPath = tuple[str | int, ...]
MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 32
MAX_VALUES = 100_000  # of a file, keys included: seconds, and about 100 MB
# Of a number, a date or the like. PyYAML reads 1:1:1:… as a number to the base 60, in a time that
# grows with the square of its length; Python refuses to write out huge ones.
MAX_NUMBER_CHARS = 400

SHOWN_CHARS = 80  # of a value in a message
HINTED_NAMES, HINTED_CHARS = 200, 80  # looked at for a hint, so that it costs milliseconds
LISTED_NAMES = 40  # in a hint that lists what is known

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT_TAG = "tag:yaml.org,2002:str"
_PLAIN_TAGS = ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
# What PyYAML's constructors raise for a scalar that is not what its tag or its form says.
_NOT_OF_TYPE = (ValueError, TypeError, LookupError, AttributeError, OverflowError)


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: its plain value, and where each key path stands in the file."""

    value: Any
    marks: Mapping[KeyPath, Mark]
    file: str

    def mark(self, path: KeyPath = ()) -> Mark:
        """The place of ``path``, or of its nearest ancestor that has one."""
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path, Mark(self.file))


def read_documents(path: Path | str, text: str | None = None) -> list[Document]:
    """Read every document of a YAML stream.

    Args:
        path: the file, or the name to show in errors when ``text`` is given.
        text: the content, if it does not come from the file.

    Raises:
        ConfigurationError: unreadable, oversize, broken, aliased, over-deep or duplicate keys.
    """
    name = str(path)
    content = _read(Path(path)) if text is None else text
    if len(content) > MAX_FILE_BYTES:
        raise _too_large(name)
    try:
        return list(_documents(content, name))
    except yaml.YAMLError as error:
        raise _broken(error, name, content) from error
    except UnicodeEncodeError as error:  # a lone surrogate
        place = _place(name, content[: error.start])
        raise _error(place, "holds text that is not Unicode", "save it as UTF-8") from error


def read_document(path: Path | str, text: str | None = None) -> Document:
    """Read a file that must hold exactly one document; errors as :func:`read_documents`."""
    documents = read_documents(path, text)
    if len(documents) != 1:
        raise _error(Mark(str(path)), f"holds {len(documents)} documents, not one", "")
    return documents[0]


def unknown_keys(document: Document, path: KeyPath, known: Iterable[str]) -> list[Problem]:
    """A problem for each key of the mapping at ``path`` that is not in ``known``."""
    value = document.value
    for step in path:
        value = value[step]
    names = list(known)
    return [
        Problem(document.mark((*path, key)), f"unknown key {shown(key)}", nearest(str(key), names))
        for key in value
        if key not in names
    ]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the likeliest intended key, or the keys there are where none is near.

    Of many or long names only the first are looked at.
    """
    names = sorted(one[:HINTED_CHARS] for one in itertools.islice(known, HINTED_NAMES))
    close = difflib.get_close_matches(name[:HINTED_CHARS], names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(names[:LISTED_NAMES]) + (", …" * (len(names) > LISTED_NAMES))


def shown(value: Any) -> str:
    """A value as a message quotes it: its repr, cut."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """The first ``max_bytes`` of a file, and never a wait: pipes and devices are refused.

    Raises:
        OSError: it is not there, may not be read, or is no regular file.
    """

    def at_once(name: str, flags: int) -> int:
        # Without O_NONBLOCK the opening of a named pipe waits for somebody to write to it.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "Not a regular file")
        return file.read(max_bytes)


def _read(path: Path) -> str:
    try:
        data = read_regular_file(path, MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        why = getattr(error, "strerror", None) or "no such name"
        raise _error(Mark(str(path)), f"cannot be read: {why}", "") from error
    if len(data) > MAX_FILE_BYTES:
        raise _too_large(str(path))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _place(str(path), data[: error.start].decode("utf-8", "replace"))
        raise _error(place, "is not UTF-8", "save it as UTF-8") from error


def _place(name: str, before: str) -> Mark:
    """The place that stands right behind the text ``before``."""
    return Mark(name, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def _documents(content: str, name: str) -> Iterator[Document]:
    _refuse_bombs(content, name)
    loader = _Loader(content)
    try:
        while loader.check_node():
            marks: dict[KeyPath, Mark] = {}
            value = _plain(loader, loader.get_node(), (), name, marks)
            yield Document(value, marks, name)
    finally:
        loader.dispose()


def _refuse_bombs(content: str, name: str) -> None:
    depth = values = 0
    for event in yaml.parse(content, Loader=_Loader):
        mark: Any = event.start_mark
        place = Mark(name, mark.line + 1, mark.column + 1)
        values += isinstance(event, yaml.NodeEvent)
        if values > MAX_VALUES:
            raise _error(place, f"holds more than {MAX_VALUES} values", "split the file")
        if isinstance(event, yaml.AliasEvent):
            raise _error(place, "YAML aliases are not allowed", "write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _error(place, "nested too deeply", f"at most {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _plain(loader: Any, node: Any, path: KeyPath, name: str, marks: dict[KeyPath, Mark]) -> Any:
    place = Mark(name, node.start_mark.line + 1, node.start_mark.column + 1)
    marks.setdefault(path, place)
    if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN_TAGS:
        raise _error(place, f"the tag {shown(node.tag)} is not allowed", "remove the tag")
    if isinstance(node, yaml.SequenceNode):
        return [
            _plain(loader, child, (*path, i), name, marks) for i, child in enumerate(node.value)
        ]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(loader, node, place)
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key_place = Mark(name, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        if not isinstance(key_node, yaml.ScalarNode):
            raise _error(key_place, "keys must be plain text", "")
        key = str(key_node.value)
        if key in result:
            raise _error(key_place, f"duplicate key {shown(key)}", "remove one")
        marks[(*path, key)] = key_place
        result[key] = _plain(loader, value_node, (*path, key), name, marks)
    return result


def _scalar(loader: Any, node: Any, place: Mark) -> Any:
    if node.tag != _TEXT_TAG and len(node.value) > MAX_NUMBER_CHARS:
        message = f"{shown(node.value)} is a number or the like of {len(node.value)} characters"
        raise _error(place, message, "quote it if it is text")
    try:
        return loader.construct_object(node)
    except _NOT_OF_TYPE as error:
        message = f"{shown(node.value)} is not of the type it is written as"
        raise _error(place, message, "quote it if it is text") from error


def _broken(error: yaml.YAMLError, name: str, content: str) -> ConfigurationError:
    mark = getattr(error, "problem_mark", None)
    offset = getattr(error, "position", None)  # in bytes, where a character itself is refused
    place = Mark(name, mark.line + 1, mark.column + 1) if mark else Mark(name)
    if not mark and isinstance(offset, int):
        place = _place(name, content.encode()[:offset].decode("utf-8", "replace"))
    problem = getattr(error, "problem", None) or getattr(error, "reason", None)
    return _error(place, f"is not valid YAML: {problem or type(error).__name__}", "")


def _too_large(name: str) -> ConfigurationError:
    return _error(Mark(name), f"larger than {MAX_FILE_BYTES} bytes", "split the file")


def _error(where: Mark, message: str, mend: str) -> ConfigurationError:
    return ConfigurationError([Problem(where, message, mend)])
