"""Typed, bounded access to the header of a frame from outside."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from nae_monitor.placement.frame import FrameError

MAX_TEXT = 4096  # characters of an id, a name, a reason
MAX_INTEGER = 2**63 - 1


class Fields:
    """One JSON object; what is missing, of another type or out of bounds raises FrameError."""

    def __init__(self, header: Mapping[str, Any]) -> None:
        self._header = header

    def integer(self, key: str, low: int = 0, high: int = MAX_INTEGER) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self._header.get(key)
        if type(value) is not int or not low <= value <= high:
            raise FrameError(f"{key} is not a whole number within its bounds")
        return value

    def integers(self, key: str, amount: int, low: int = 0, high: int = MAX_INTEGER) -> list[int]:
        """Just ``amount`` whole numbers."""
        values = self.items(key, amount)
        if not all(type(value) is int and low <= value <= high for value in values):
            raise FrameError(f"{key} holds what is not a whole number within its bounds")
        return values

    def number(self, key: str, low: float, high: float) -> float:
        """A number from ``low`` to ``high``."""
        value = self._header.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FrameError(f"{key} is not a number")
        if not low <= value <= high:  # NaN is not either
            raise FrameError(f"{key} is out of bounds")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._header.get(key)
        if type(value) is not bool:
            raise FrameError(f"{key} is neither true nor false")
        return value

    def text(self, key: str, limit: int = MAX_TEXT) -> str:
        """A text that can be written as UTF-8."""
        return _text(self._header.get(key), key, limit)

    def text_or_none(self, key: str) -> str | None:
        """As :meth:`text`, or null."""
        return None if self._header.get(key) is None else self.text(key)

    def texts(self, key: str, amount: int | None = None, limit: int = 1024) -> list[str]:
        """Texts; just ``amount`` where that is given."""
        return [_text(value, key, MAX_TEXT) for value in self.items(key, amount, limit)]

    def items(self, key: str, amount: int | None = None, limit: int = 65_536) -> list[Any]:
        """A list of anything."""
        values = self._header.get(key)
        if not isinstance(values, list) or len(values) > limit:
            raise FrameError(f"{key} is not a list within its bounds")
        if amount is not None and len(values) != amount:
            raise FrameError(f"{key} holds {len(values)} items, {amount} are announced")
        return values

    def object(self, key: str, limit: int = 256) -> dict[str, Any]:
        """A mapping of anything by text."""
        value = self._header.get(key)
        if not isinstance(value, dict) or len(value) > limit:
            raise FrameError(f"{key} is not an object within its bounds")
        for name in value:
            _text(name, key, MAX_TEXT)
        return value

    def has(self, key: str) -> bool:
        """Whether it is there and not null."""
        return self._header.get(key) is not None


def _text(value: Any, key: str, limit: int) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise FrameError(f"{key} is not a text within its bounds")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise FrameError(f"{key} is not a text that can be written") from error
    return value


def numbers(value: Mapping[str, Any], key: str) -> dict[str, float]:
    """A mapping of text to finite numbers."""
    low, high = -sys.float_info.max, sys.float_info.max
    inner = Fields(value)
    found = {name: inner.number(name, low, high) for name in value}
    for name in found:
        _text(name, key, MAX_TEXT)
    return found
