"""Checks of a condition by its truth table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from nae_monitor.detect.conditions import Expression, evaluate, names_in
from nae_monitor.detect.lint.diagnostics import Diagnostic, diagnose
from nae_monitor.detect.lint.subject import LintSubject
from nae_monitor.detect.schema import Rule

MAX_TABLE_NAMES = 12  # 4,096 rows; conditions over more selections are not checked


def truth_table(expression: Expression) -> dict[tuple[bool, ...], bool] | None:
    """The answer for each combination of the selections in sorted order; None where too many."""
    names = sorted(set(names_in(expression)))
    if len(names) > MAX_TABLE_NAMES:
        return None
    return {
        row: evaluate(expression, dict(zip(names, row, strict=True))) is True
        for row in itertools.product((False, True), repeat=len(names))
    }


def check_condition(subject: LintSubject) -> Iterator[Diagnostic]:
    """NM120: never true, always true, true of what says nothing, or deaf to a selection."""
    if subject.rule is None:
        return
    table = truth_table(subject.rule.condition)
    if table is None:
        return
    where = subject.mark("detection", "condition")
    names = sorted(set(names_in(subject.rule.condition)))
    if not any(table.values()):
        yield diagnose("NM120", where, "the condition can never be true", "look for x and not x")
    elif all(table.values()):
        yield diagnose("NM120", where, "the condition is always true", "look for x or not x")
    else:
        for index, name in enumerate(names):
            if all(table[row] == table[_flipped(row, index)] for row in table):
                message = f"selection {name!r} makes no difference to the condition"
                yield diagnose("NM120", where, message, "remove it, or mend the parentheses")


def _flipped(row: tuple[bool, ...], index: int) -> tuple[bool, ...]:
    return (*row[:index], not row[index], *row[index + 1 :])


def check_stop(subject: LintSubject) -> Iterator[Diagnostic]:
    """NM502: an action that ends a generation hangs on one reading of uncertain text."""
    actions = subject.get("actions")
    if not isinstance(actions, list):
        return
    for index, action in enumerate(actions):
        if not isinstance(action, dict) or "stop_generation" not in action:
            continue
        alone = [
            name
            for name in (sufficient_alone(subject.rule) if subject.rule else ())
            if "activation" not in (subject.get("detection", name) or {})
        ]
        if alone:
            message = f"{alone[0]!r} alone stops a generation"
            mend = "ask for two signs: `2 of name_*`, or a text and an activation"
            yield diagnose("NM502", subject.mark("actions", index), message, mend)


def sufficient_alone(rule: Rule) -> list[str]:
    """The selections that make the condition true with every other one false."""
    names = sorted(set(names_in(rule.condition)))
    return [
        name
        for name in names
        if evaluate(rule.condition, {other: other == name for other in names})
    ]
