"""Which rows are replayed: a small language over their columns, read into Arrow expressions.

::

    tenant = acme and time >= 2026-10-01 and not phase = prompt
    request in (r1, "r 2") or rule = deception.hidden_goal

Fields: ``request``, ``group``, ``session``, ``tenant``, ``model``, ``phase`` (prompt, completion),
``position`` and ``layer`` (numbers), ``time`` (ISO 8601, UTC where no offset is given; when the
row was captured, or else when its turn began) and ``rule`` (the name or id of a rule that found
something, live, in the row's request). Operators: ``= != < <= > >=`` and ``in``; ``and``, ``or``,
``not`` and parentheses. What was not recorded is neither equal nor unequal to anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import reduce
from types import MappingProxyType
from typing import Any, NoReturn

import pyarrow.compute as pc

from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.records import Phase

MAX_CHARACTERS = 4096
MAX_DEPTH = 50
_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"[^"]*"|'[^']*')|(?P<mark><=|>=|!=|[=<>(),])|(?P<word>[^\s=!<>(),"']+))"""
)
_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        "=": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
    }
)
_TEXTS = frozenset({"request", "group", "session", "tenant", "model", "phase", "rule"})
_NUMBERS = frozenset({"position", "layer", "time"})


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter that was read.

    ``expression`` is over the fields' names; rule R of ``rules`` is the boolean column ``rule R``.
    """

    expression: Any
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    column: int  # from 1
    quoted: bool = False

    def is_word(self, word: str) -> bool:
        return not self.quoted and self.text.lower() == word


def parse_where(text: str) -> Filter:
    """Read a filter.

    Raises:
        ConfigurationError: names the column of what cannot be read, and what may stand there.
    """
    if len(text) > MAX_CHARACTERS:
        _refuse(1, f"longer than {MAX_CHARACTERS} characters")
    parser = _Parser(_tokens(text), len(text) + 1)
    expression = parser.alternatives(0)
    parser.end()
    return Filter(expression, tuple(parser.rules))


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    place, end = 0, len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            column = place + 1 + len(text[place:]) - len(text[place:].lstrip())
            _refuse(column, "cannot be read", "close every quote; put values in quotes")
        kind = str(match.lastgroup)
        found = match[kind]
        quoted = kind == "quoted"
        tokens.append(_Token(found[1:-1] if quoted else found, match.start(kind) + 1, quoted))
        place = match.end()
    return tokens


@dataclass(slots=True)
class _Parser:
    """Recursive descent, one token ahead."""

    tokens: list[_Token]
    end_column: int
    rules: list[str] = field(default_factory=list)
    _next: int = 0

    def _peek(self) -> _Token:
        if self._next < len(self.tokens):
            return self.tokens[self._next]
        return _Token("", self.end_column)

    def _take(self) -> _Token:
        token = self._peek()
        self._next += 1
        return token

    def _taken(self, word: str) -> bool:
        found = self._peek().is_word(word)
        self._next += found
        return found

    def _must(self, mark: str) -> None:
        column = self._peek().column
        if not self._taken(mark):
            _refuse(column, f"expected {mark!r}")

    def end(self) -> None:
        if self._next < len(self.tokens):
            _refuse(self._peek().column, "expected 'and', 'or' or the end")

    def alternatives(self, depth: int) -> Any:
        found = self._conjunction(depth)
        while self._taken("or"):
            found = found | self._conjunction(depth)
        return found

    def _conjunction(self, depth: int) -> Any:
        found = self._unary(depth)
        while self._taken("and"):
            found = found & self._unary(depth)
        return found

    def _unary(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            _refuse(self._peek().column, f"nested deeper than {MAX_DEPTH}")
        if self._taken("not"):
            return ~self._unary(depth + 1)
        if self._taken("("):
            inside = self.alternatives(depth + 1)
            self._must(")")
            return inside
        return self._comparison()

    def _comparison(self) -> Any:
        name = self._take()
        field_name = "" if name.quoted else name.text.lower()
        if field_name not in _TEXTS | _NUMBERS:
            _refuse(name.column, "expected a field", f"one of: {', '.join(sorted(_ALL))}")
        operator = self._take()
        if operator.is_word("in"):
            return self._among(field_name)
        allowed = ("=", "!=") if field_name in _TEXTS else tuple(_COMPARE)
        if operator.quoted or operator.text not in allowed:
            _refuse(operator.column, f"expected one of {' '.join(allowed)} or in")
        return self._compared(field_name, operator.text)

    def _among(self, field_name: str) -> Any:
        self._must("(")
        found = [self._compared(field_name, "=")]
        while self._taken(","):
            found.append(self._compared(field_name, "="))
        self._must(")")
        return reduce(lambda a, b: a | b, found)

    def _compared(self, field_name: str, operator: str) -> Any:
        token = self._take()
        if not token.quoted and token.text in ("", "(", ")", ",", *_COMPARE):
            _refuse(token.column, "expected a value")
        if field_name == "rule":
            self.rules.append(token.text)
            found = pc.field(f"rule {token.text}")
            return found if operator == "=" else ~found
        return _COMPARE[operator](pc.field(field_name), _value(field_name, token))


_ALL = _TEXTS | _NUMBERS


def _value(field_name: str, token: _Token) -> str | int:
    try:
        if field_name == "time":
            moment = datetime.fromisoformat(token.text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return round(moment.timestamp() * 1_000_000) * 1000
        if field_name in _NUMBERS:
            number = int(token.text)
            return number if abs(number) < 2**31 else _refuse(token.column, "too large a number")
        return Phase(token.text).value if field_name == "phase" else token.text
    except (ValueError, OverflowError):
        kinds = {"time": "a date or time such as 2026-10-01T12:00", "phase": "prompt or completion"}
        _refuse(token.column, f"expected {kinds.get(field_name, 'a whole number')}")


def _refuse(column: int, message: str, mend: str = "") -> NoReturn:
    raise ConfigurationError([Problem(Mark("--where", 1, column), message, mend)])
