"""Reads one YAML document as a :class:`Rule`; unknown and unsupported keys stop it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast, get_args

from nae_monitor.detect.conditions import (
    RESERVED,
    SELECTION_NAME,
    ConditionError,
    Expression,
    Name,
    names_in,
    parse_condition,
)
from nae_monitor.detect.example_reader import read_tests
from nae_monitor.detect.header_reader import read_header, read_name
from nae_monitor.detect.reading import Reader
from nae_monitor.detect.response_reader import read_actions, read_suppression
from nae_monitor.detect.schema import (
    Fidelity,
    LowFidelity,
    Metric,
    Rule,
    RuleException,
    Scope,
    Selection,
)
from nae_monitor.detect.selection_reader import read_selection
from nae_monitor.errors import Problem
from nae_monitor.records import Phase
from nae_monitor.strict_yaml import Document

MAX_SELECTIONS = 256  # of a rule, those inside exceptions included
MAX_MENTIONS = 4_096  # of selections in its conditions, globs counted as what they stand for


def read_rule(document: Document) -> tuple[Rule | None, list[Problem]]:
    """The rule a document holds, or None and everything that is wrong with it."""
    problems: list[Problem] = []
    reader = Reader(document, (), problems)
    if not reader.value:
        return None, problems or [Problem(document.mark(), "the document is empty", "remove it")]
    selections: dict[str, Selection] = {}
    condition = _detection(reader, selections)
    exceptions = _exceptions(reader, selections)
    header = read_header(reader)
    tests = read_tests(reader, selections)
    fidelity = _fidelity(reader.child("fidelity")) if reader.has("fidelity") else None
    scope = _scope(reader.child("scope")) if reader.has("scope") else Scope()
    suppress = read_suppression(reader)
    actions = read_actions(reader, header["enforcement"])
    reader.finish()
    if problems or condition is None:
        return None, problems
    _bound(reader, selections, condition, exceptions)
    _report_unused(reader, selections, condition, exceptions)
    rule = Rule(
        **header,
        selections=MappingProxyType(selections),
        condition=condition,
        file=document.file,
        canonical=document.value,
        scope=scope,
        exceptions=exceptions,
        fidelity=fidelity,
        suppress=suppress,
        actions=actions,
        tests=tests,
    )
    return (None if problems else rule), problems


def _scope(reader: Reader) -> Scope:
    phases = reader.texts("phase")
    known = [phase.value for phase in Phase]
    for phase in phases:
        if phase not in known:
            reader.fault("phase", f"unknown phase {phase!r}", "one of: " + ", ".join(known))
    layers = reader.sequence("layers")
    if not all(type(layer) is int and 0 <= layer <= 10_000 for layer in layers):
        reader.fault("layers", "layers must be whole numbers", "write [20]")
    scope = Scope(
        phases=tuple(Phase(phase) for phase in phases if phase in known),
        min_token_index=reader.integer("min_token_index", 0, 10**9, 0) or 0,
        max_norm=reader.number("max_norm", 0, 1e30),
        models=reader.texts("models", 200),
        layers=tuple(layers),
    )
    reader.finish()
    return scope


def _fidelity(reader: Reader) -> Fidelity:
    metric = reader.choice("metric", get_args(Metric), "fve")
    if not reader.has("min"):
        reader.fault(None, "fidelity lacks its min", "add `min: 0.5`")
    low, high = (0.0, 100.0) if metric == "percentile" else (-1e6, 1.0)
    minimum = reader.number("min", low, high, high)
    below = reader.choice("below", ("drop", "downgrade", "tag"), "downgrade")
    unscored = reader.choice("unscored", ("drop", "downgrade", "pass"), "downgrade")
    min_support = reader.number("min_support", 0, 2)
    max_unsupported = reader.number("max_unsupported", 0, 1)
    reader.finish()
    return Fidelity(
        cast(Metric, metric),
        cast(float, minimum),
        cast(LowFidelity, below),
        cast(LowFidelity, unscored),
        min_support,
        max_unsupported,
    )


def _detection(reader: Reader, selections: dict[str, Selection]) -> Expression | None:
    """Fill ``selections`` and parse the condition over every name, faulty ones included."""
    if not reader.has("detection"):
        reader.fault(None, "the rule lacks its detection", "add `detection:` with a condition")
        return None
    inner = reader.child("detection")
    names = [name for name in inner.value if name != "condition"]
    if len(names) > MAX_SELECTIONS:
        inner.fault(None, f"{len(names)} selections; at most {MAX_SELECTIONS}", "split the rule")
        return None
    for name in names:
        if not SELECTION_NAME.fullmatch(name) or name in RESERVED:
            inner.fault(name, f"{name[:60]!r} cannot name a selection", "use a-z, 0-9 and _")
        selection = read_selection(inner.child(name), name)
        if selection is not None:
            selections[name] = selection
    text = inner.text("condition", max_chars=10**6)
    return _condition(inner, "condition", text, names) if text else None


def _condition(reader: Reader, key: str, text: str, names: list[str]) -> Expression | None:
    try:
        return parse_condition(text, names)
    except ConditionError as error:
        path = (*reader.path, key)
        reader.problems.append(error.problem(reader.document.mark(path)))
        return None


def _exceptions(reader: Reader, selections: dict[str, Selection]) -> tuple[RuleException, ...]:
    found: list[RuleException] = []
    for inner in reader.children("exceptions"):
        name = read_name(inner)
        if any(name == other.name for other in found):
            inner.fault("name", f"exception {name!r} is there twice", "rename one")
        when = _when(inner, name, selections)
        reason = inner.text("reason", max_chars=1_000)
        expires = inner.date("expires")
        inner.finish()
        if when is not None:
            found.append(RuleException(name, when, reason, expires))
    return tuple(found)


def _when(reader: Reader, name: str, selections: dict[str, Selection]) -> Expression | None:
    """A condition over the rule's selections, or an inline selection of its own."""
    if reader.has("when") and isinstance(reader.value["when"], dict):
        # The dot keeps an inline selection apart from every name a condition can spell.
        own = f"exception.{name}"
        selection = read_selection(reader.child("when"), own)
        if selection is None:
            return None
        selections[own] = selection
        return Name(own)
    text = reader.text("when", max_chars=10**6)
    names = [known for known in selections if "." not in known]
    return _condition(reader, "when", text, names) if text else None


def _bound(
    reader: Reader,
    selections: Mapping[str, Selection],
    condition: Expression,
    exceptions: tuple[RuleException, ...],
) -> None:
    """A rule is worked out anew after each of its selections that is asked."""
    if len(selections) > MAX_SELECTIONS:
        message = f"{len(selections)} selections, those of exceptions included"
        reader.fault("exceptions", f"{message}; at most {MAX_SELECTIONS}", "join their lists")
    mentions = sum(1 for one in (condition, *(e.when for e in exceptions)) for _ in names_in(one))
    if mentions > MAX_MENTIONS:
        message = f"the conditions name selections {mentions} times; at most {MAX_MENTIONS}"
        reader.fault("detection", message, "split the rule")


def _report_unused(
    reader: Reader,
    selections: Mapping[str, Selection],
    condition: Expression,
    exceptions: tuple[RuleException, ...],
) -> None:
    used = set(names_in(condition)).union(*(names_in(e.when) for e in exceptions))
    for name in selections:
        if name not in used:
            path = ("detection", name)
            message = f"selection {name!r} is never used"
            mend = "name it in the condition or remove it"
            reader.problems.append(Problem(reader.document.mark(path), message, mend, "NM111"))
