"""Typed reading of one YAML mapping; every fault becomes a problem with its place in the file."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from nae_monitor.errors import Problem
from nae_monitor.strict_yaml import Document, KeyPath, nearest

MAX_ITEMS = 1_000
MAX_TEXT_CHARS = 20_000


class Reader:
    """Reads the keys of the mapping at ``path``; keys nobody asked for are problems too.

    A faulty key reads as its default and leaves a problem behind: whoever reads goes on, so that
    every fault of a file is reported at once, and asks ``problems`` at the end.
    """

    def __init__(
        self,
        document: Document,
        path: KeyPath,
        problems: list[Problem],
        spent: Counter[str] | None = None,
    ) -> None:
        self.document, self.path, self.problems = document, path, problems
        self.spent: Counter[str] = Counter() if spent is None else spent  # by the whole document
        value = document.value
        for step in path:
            value = value[step]
        fits = isinstance(value, dict) and len(value) <= MAX_ITEMS
        self.value: dict[str, Any] = value if fits else {}
        self._asked: set[str] = set()
        if not isinstance(value, dict):
            self.fault(None, f"{self.name} must be a mapping", "write `key: value` lines")
        elif not fits:
            self.fault(
                None, f"{self.name} holds {len(value)} keys; at most {MAX_ITEMS}", "split it"
            )

    @property
    def name(self) -> str:
        """What to call this mapping in a message."""
        return ".".join(str(step) for step in self.path) or "the rule"

    def fault(self, key: str | None, message: str, mend: str = "", code: str = "") -> None:
        """Report a problem at ``key`` (or the mapping itself)."""
        path = self.path if key is None else (*self.path, key)
        self.problems.append(Problem(self.document.mark(path), message, mend, code))

    def has(self, key: str) -> bool:
        """Whether the key is there; it counts as known."""
        self._asked.add(key)
        return key in self.value

    def child(self, key: str) -> Reader:
        """A reader of the mapping under ``key``, which must be there."""
        self._asked.add(key)
        return Reader(self.document, (*self.path, key), self.problems, self.spent)

    def children(self, key: str) -> list[Reader]:
        """Readers of the mappings in the list under ``key``."""
        return [self.at(key, index) for index in range(len(self.sequence(key)))]

    def at(self, key: str, index: int) -> Reader:
        """A reader of the mapping at an index of the list under ``key``."""
        return Reader(self.document, (*self.path, key, index), self.problems, self.spent)

    def sequence(self, key: str) -> list[Any]:
        """The list under ``key``; empty where it is missing or faulty."""
        if not self.has(key):
            return []
        value = self.value[key]
        if not isinstance(value, list):
            self.fault(key, f"{key} must be a list", "write it as [a, b]")
            return []
        if len(value) > MAX_ITEMS:
            self.fault(key, f"{key} holds {len(value)} items; at most {MAX_ITEMS}", "split it")
            return []
        return value

    def texts(self, key: str, max_chars: int = MAX_TEXT_CHARS) -> tuple[str, ...]:
        """The list of non-empty texts under ``key``."""
        items = self.sequence(key)
        for index, item in enumerate(items):
            if not isinstance(item, str) or not item.strip():
                self.item_fault(key, index, "must be non-empty text", "quote it")
            elif len(item) > max_chars:
                self.item_fault(key, index, f"is longer than {max_chars} characters", "split it")
        return tuple(item for item in items if isinstance(item, str))

    def item_fault(self, key: str, index: int, message: str, mend: str) -> None:
        """Report a problem at an item of the list under ``key``."""
        mark = self.document.mark((*self.path, key, index))
        self.problems.append(Problem(mark, f"{key}[{index}] {message}", mend))

    def text(self, key: str, default: str | None = None, max_chars: int = MAX_TEXT_CHARS) -> str:
        """The text under ``key``; without a default the key must be there and not be empty."""
        if not self.has(key):
            return self._absent(key, default)
        value = self.value[key]
        if not isinstance(value, str):
            self.fault(key, f"{key} is {_shown(value)}, not text", "quote it")
        elif default is None and not value.strip():
            self.fault(key, f"{key} is empty", "write something")
        elif len(value) > max_chars:
            self.fault(key, f"{key} is longer than {max_chars} characters", "shorten it")
        else:
            return value
        return default or ""

    def _absent(self, key: str, default: str | None) -> str:
        if default is None:
            self.fault(None, f"{self.name} lacks the key {key!r}", f"add `{key}: …`")
        return default or ""

    def choice(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        """One of ``allowed``; reads as the first of them where faulty."""
        fallback = allowed[0] if default is None else default
        if not self.has(key):
            self._absent(key, default)
            return fallback
        value = self.value[key]
        if value not in allowed:
            self.fault(key, f"{key} is {_shown(value)}", "one of: " + ", ".join(allowed))
            return fallback
        return str(value)

    def number(
        self, key: str, low: float, high: float, default: float | None = None
    ) -> float | None:
        """A finite number between ``low`` and ``high``; the default where missing or faulty."""
        if not self.has(key):
            return default
        value = self.value[key]
        if not isinstance(value, int | float) or isinstance(value, bool):
            self.fault(key, f"{key} is {_shown(value)}, not a number")
        elif not low <= value <= high:  # false for NaN too
            self.fault(key, f"{key} is {_shown(value)}", f"between {low:g} and {high:g}")
        else:
            return float(value)
        return default

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int | None:
        """A whole number between ``low`` and ``high``; the default where missing or faulty."""
        if self.has(key) and isinstance(self.value[key], float):
            self.fault(key, f"{key} is {_shown(self.value[key])}", "write a whole number")
            return default
        found = self.number(key, low, high, None)
        return default if found is None else int(found)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        if not self.has(key):
            return default
        value = self.value[key]
        if not isinstance(value, bool):
            self.fault(key, f"{key} is {_shown(value)}", "write true or false")
            return default
        return value

    def date(self, key: str) -> datetime.date | None:
        """A calendar day such as 2026-11-22, quoted or not."""
        if not self.has(key):
            return None
        value = self.value[key]
        if type(value) is datetime.date:
            return value
        try:
            return datetime.date.fromisoformat(value)
        except (TypeError, ValueError):
            self.fault(key, f"{key} is {_shown(value)}, not a day", "write it as 2026-11-22")
            return None

    def finish(self, unsupported: Collection[str] = (), known: Iterable[str] | None = None) -> None:
        """Report every key that nobody asked for.

        Args:
            unsupported: keys of the full language that this version must refuse by name.
            known: the keys to hint at; those asked for where None.
        """
        names = set(self._asked if known is None else known)
        for key in self.value:
            if key in unsupported:
                message = f"{key!r} is not supported by this version"
                self.fault(key, message, "remove it: it would have no effect", "NM103")
            elif key not in self._asked:
                hint = nearest(key, names)
                self.fault(key, f"unknown key {_shown(key)} in {self.name}", hint, "NM101")


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
