"""The condition language: named selections joined by and, or, not, and "N of" counts.

::

    expr = term {"or" term}
    term = fact {"and" fact}
    fact = "not" fact | "(" expr ")" | (INT | "all") "of" ("them" | GLOB) | NAME

A selection answers True, False or None ("unknown": its input was missing). Unknown propagates by
Kleene's strong three-valued logic, so an answer that is True or False stays so whatever the
unknown inputs would have been; the engine's short cuts rest on that. Grammar after Sigma's.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nae_monitor.errors import Mark, Problem, RuleError
from nae_monitor.strict_yaml import nearest

MAX_CONDITION_CHARS = 2_000
MAX_CONDITION_DEPTH = 32  # parentheses and nots inside one another
RESERVED = frozenset({"and", "or", "not", "of", "all", "them"})
SELECTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)

_TOKEN = re.compile(r"\s*(?:(?P<word>[A-Za-z0-9_*]+)|(?P<paren>[()]))", re.ASCII)


class ConditionError(RuleError):
    """A condition that cannot be parsed; ``column`` counts from 1 within the condition."""

    def __init__(self, column: int, message: str, mend: str = "", code: str = "") -> None:
        self.column, self.message, self.mend, self.code = column, message, mend, code
        super().__init__([self.problem(Mark("condition"))])

    def problem(self, where: Mark) -> Problem:
        """The same fault, placed in a file."""
        return Problem(
            where, f"condition, column {self.column}: {self.message}", self.mend, self.code
        )


@dataclass(frozen=True, slots=True)
class Name:
    """One selection."""

    name: str


@dataclass(frozen=True, slots=True)
class Not:
    """Negation."""

    operand: Expression


@dataclass(frozen=True, slots=True)
class And:
    """Every operand."""

    operands: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one operand."""

    operands: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """At least ``needed`` of the selections."""

    needed: int
    names: tuple[str, ...]


Expression = Name | Not | And | Or | Count


def evaluate(expression: Expression, answers: Mapping[str, bool | None]) -> bool | None:
    """The three-valued truth of ``expression``; a name without an answer is unknown."""
    match expression:
        case Name(name):
            return answers.get(name)
        case Not(operand):
            inner = evaluate(operand, answers)
            return None if inner is None else not inner
        case And(operands):
            values = [evaluate(operand, answers) for operand in operands]
            return _at_least(len(values), values)
        case Or(operands):
            return _at_least(1, [evaluate(operand, answers) for operand in operands])
        case Count(needed, names):
            return _at_least(needed, [answers.get(name) for name in names])


def _at_least(needed: int, values: Sequence[bool | None]) -> bool | None:
    certain = sum(value is True for value in values)
    possible = certain + sum(value is None for value in values)
    if certain >= needed:
        return True
    return None if possible >= needed else False


def names_in(expression: Expression) -> Iterator[str]:
    """Every selection that ``expression`` mentions, repeats included."""
    return (name for name, _ in _signed_names(expression, True))


def supporting_names(expression: Expression) -> frozenset[str]:
    """The selections whose match speaks for the rule: those under an even number of nots."""
    return frozenset(name for name, positive in _signed_names(expression, True) if positive)


def _signed_names(expression: Expression, positive: bool) -> Iterator[tuple[str, bool]]:
    match expression:
        case Name(name):
            yield name, positive
        case Not(operand):
            yield from _signed_names(operand, not positive)
        case And(operands) | Or(operands):
            for operand in operands:
                yield from _signed_names(operand, positive)
        case Count(_, names):
            yield from ((name, positive) for name in names)


def parse_condition(text: str, selections: Sequence[str]) -> Expression:
    """Parse ``text`` over the given selection names; globs are resolved here.

    Raises:
        ConditionError: with the column of the first fault.
    """
    if len(text) > MAX_CONDITION_CHARS:
        raise ConditionError(1, f"longer than {MAX_CONDITION_CHARS} characters", "split the rule")
    parser = _Parser(_tokens(text), selections)
    expression = parser.expression(0)
    parser.expect_end()
    return expression


@dataclass(frozen=True, slots=True)
class _Token:
    text: str  # empty at the end of the condition
    column: int


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    place = 0
    end = len(text.rstrip())
    while place < end:
        found = _TOKEN.match(text, place)
        if found is None:
            column = place + len(text[place:]) - len(text[place:].lstrip()) + 1
            mend = "use names, and, or, not, of, them, all, numbers, * and parentheses"
            raise ConditionError(column, f"unexpected character {text[column - 1]!r}", mend)
        group = found.lastgroup or "word"
        tokens.append(_Token(found[group], found.start(group) + 1))
        place = found.end()
    return [*tokens, _Token("", end + 1)]


class _Parser:
    """Recursive descent with one token of look-ahead."""

    def __init__(self, tokens: Sequence[_Token], selections: Sequence[str]) -> None:
        self._tokens = tokens
        self._next = 0
        self._selections = selections

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._token
        if token.text:
            self._next += 1
        return token

    def _accept(self, word: str) -> bool:
        if self._token.text == word:
            self._next += 1
            return True
        return False

    def expect_end(self) -> None:
        token = self._token
        if token.text:
            raise ConditionError(
                token.column, f"unexpected {token.text!r}", "join facts with and, or"
            )

    def expression(self, depth: int) -> Expression:
        terms = [self._term(depth)]
        while self._accept("or"):
            terms.append(self._term(depth))
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def _term(self, depth: int) -> Expression:
        facts = [self._fact(depth)]
        while self._accept("and"):
            facts.append(self._fact(depth))
        return facts[0] if len(facts) == 1 else And(tuple(facts))

    def _fact(self, depth: int) -> Expression:
        if depth > MAX_CONDITION_DEPTH:
            message = f"nested more than {MAX_CONDITION_DEPTH} levels deep"
            raise ConditionError(self._token.column, message, "split the condition")
        token = self._take()
        if token.text == "not":
            return Not(self._fact(depth + 1))
        if token.text == "(":
            inner = self.expression(depth + 1)
            if not self._accept(")"):
                raise ConditionError(token.column, "this parenthesis is never closed", "add )")
            return inner
        if token.text == "all" or token.text[:1].isdigit():
            return self._count(token)
        return self._name(token)

    def _name(self, token: _Token) -> Expression:
        if token.text in self._selections:
            return Name(token.text)
        if not token.text:
            raise ConditionError(token.column, "ends where a selection is expected", "name one")
        if token.text.lower() in RESERVED and token.text not in RESERVED:
            raise ConditionError(token.column, f"{token.text!r} must be lower case", "")
        if token.text in RESERVED or token.text == ")":
            raise ConditionError(token.column, f"{token.text!r} where a selection is expected", "")
        if "*" in token.text:
            mend = f"write `1 of {token.text}` or `all of {token.text}`"
            raise ConditionError(token.column, "a pattern stands alone", mend)
        mend = nearest(token.text, self._selections)
        raise ConditionError(token.column, f"no selection {token.text!r}", mend, "NM110")

    def _count(self, amount: _Token) -> Expression:
        if amount.text != "all" and not (amount.text.isdecimal() and len(amount.text) <= 4):
            mend = "selection names start with a letter or _"
            raise ConditionError(amount.column, f"{amount.text!r} is not a number", mend)
        if not self._accept("of"):
            mend = f"write `{amount.text} of them` or `{amount.text} of name_*`"
            raise ConditionError(self._token.column, f"{amount.text!r} lacks its `of`", mend)
        target = self._take()
        names = self._members(target)
        needed = len(names) if amount.text == "all" else int(amount.text)
        if not 1 <= needed <= len(names):
            message = f"{needed} of {target.text} is out of reach: {len(names)} selections"
            raise ConditionError(amount.column, message, f"use 1 to {len(names)}")
        return Count(needed, names)

    def _members(self, target: _Token) -> tuple[str, ...]:
        if not target.text or (target.text in RESERVED - {"them"}) or target.text in ("(", ")"):
            raise ConditionError(target.column, "`of` lacks its selections", "write them or name_*")
        pattern = "*" if target.text == "them" else target.text
        # A leading underscore marks a building block; only a pattern that says so counts it.
        names = tuple(
            name
            for name in self._selections
            if fnmatch.fnmatchcase(name, pattern)
            and (pattern.startswith("_") or not name.startswith("_"))
        )
        if not names:
            mend = nearest(target.text, self._selections)
            raise ConditionError(
                target.column, f"{target.text!r} names no selection", mend, "NM110"
            )
        return names
