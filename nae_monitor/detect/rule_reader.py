"""Reads one YAML document as a :class:`Rule`; unknown and unsupported keys stop it."""

from __future__ import annotations

import importlib.metadata
import re
import uuid
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast, get_args

from packaging.specifiers import InvalidSpecifier, SpecifierSet

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
from nae_monitor.detect.reading import Reader
from nae_monitor.detect.schema import (
    RISK_BANDS,
    SCHEMA_VERSION,
    Enforcement,
    Fidelity,
    LowFidelity,
    Rule,
    RuleException,
    Scope,
    Selection,
    Status,
)
from nae_monitor.detect.selection_reader import read_selection
from nae_monitor.errors import Problem
from nae_monitor.records import Phase, Severity
from nae_monitor.strict_yaml import Document

OTHER_KINDS = ("aggregation", "filter", "list", "macro", "override")
UNSUPPORTED_KEYS = frozenset({"suppress", "actions", "related", "required_nla", *OTHER_KINDS})
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)


def read_rule(document: Document) -> tuple[Rule | None, list[Problem]]:
    """The rule a document holds, or None and everything that is wrong with it."""
    problems: list[Problem] = []
    reader = Reader(document, (), problems)
    if not reader.value:
        return None, problems or [Problem(document.mark(), "the document is empty", "remove it")]
    for kind in OTHER_KINDS:
        if kind in reader.value and "detection" not in reader.value:
            mend = "only rules with `detection` are read; remove the document"
            reader.fault(
                kind, f"{kind!r} documents are not supported by this version", mend, "NM103"
            )
            return None, problems
    selections: dict[str, Selection] = {}
    condition = _detection(reader, selections)
    exceptions = _exceptions(reader, selections)
    header = _header(reader)
    tests = read_tests(reader, selections)
    fidelity = _fidelity(reader.child("fidelity")) if reader.has("fidelity") else None
    scope = _scope(reader.child("scope")) if reader.has("scope") else Scope()
    reader.finish(UNSUPPORTED_KEYS)
    if problems or condition is None:
        return None, problems
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
        tests=tests,
    )
    return (None if problems else rule), problems


def _header(reader: Reader) -> dict[str, Any]:
    version = reader.integer("schema_version", 0, 10**6)
    if version != SCHEMA_VERSION:
        key = "schema_version" if "schema_version" in reader.value else None
        reader.fault(key, "schema_version must be 1", f"write `schema_version: {SCHEMA_VERSION}`")
    _require_engine(reader)
    severity = Severity(reader.choice("severity", [s.value for s in Severity]))
    return {
        "id": _identifier(reader),
        "name": _rule_name(reader),
        "title": reader.text("title", max_chars=200),
        "version": _version(reader),
        "severity": severity,
        "status": cast(Status, reader.choice("status", get_args(Status), "experimental")),
        "risk_score": _risk_score(reader, severity),
        "description": reader.text("description", ""),
        "author": reader.text("author", ""),
        "date": reader.date("date"),
        "references": reader.texts("references"),
        "tags": reader.texts("tags", 100),
        "falsepositives": reader.texts("falsepositives"),
        "guide": reader.text("guide", ""),
        "enabled": reader.boolean("enabled", True),
        "enforcement": cast(
            Enforcement, reader.choice("enforcement", get_args(Enforcement), "shadow")
        ),
    }


def _identifier(reader: Reader) -> str:
    text = reader.text("id", max_chars=64)
    try:
        return str(uuid.UUID(text))
    except ValueError:
        if text:
            reader.fault("id", "id is not a UUID", "make one with uuid.uuid4()")
        return ""


def _rule_name(reader: Reader) -> str:
    name = reader.text("name", max_chars=64)
    if name and not _NAME.fullmatch(name):
        reader.fault("name", f"name {name!r} is not a handle", "use a-z, 0-9 and _, letter first")
    return name


def _version(reader: Reader) -> str:
    if reader.has("version") and type(reader.value["version"]) is int:
        return str(reader.value["version"])
    return reader.text("version", "1", max_chars=40)


def _risk_score(reader: Reader, severity: Severity) -> int | None:
    score = reader.integer("risk_score", 0, 100)
    low, high = RISK_BANDS[severity]
    if score is not None and not low <= score <= high:
        message = f"risk_score {score} is outside the band of severity {severity.value}"
        reader.fault("risk_score", message, f"{low} to {high}", "NM312")
    return score


def _require_engine(reader: Reader) -> None:
    specifier = reader.text("required_engine_version", "", max_chars=100)
    if not specifier:
        return
    try:
        ours = importlib.metadata.version("nae-monitor")
        if not SpecifierSet(specifier).contains(ours, prereleases=True):
            message = f"the rule needs engine {specifier}; this is {ours}"
            reader.fault("required_engine_version", message, "update nae-monitor")
    except InvalidSpecifier:
        message = "required_engine_version is not a version specifier"
        reader.fault("required_engine_version", message, 'write it as ">=0.1"')


def _scope(reader: Reader) -> Scope:
    phases = reader.texts("phase")
    known = [phase.value for phase in Phase]
    for phase in phases:
        if phase == "tool":
            message = "phase 'tool' is not supported by this version"
            reader.fault("phase", message, "remove it", "NM103")
        elif phase not in known:
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
    if reader.has("metric") and reader.value["metric"] == "percentile":
        message = "metric 'percentile' is not supported by this version"
        reader.fault("metric", message, "use fve", "NM103")
        metric = "fve"
    else:
        metric = reader.choice("metric", ("fve", "cosine"), "fve")
    if not reader.has("min"):
        reader.fault(None, "fidelity lacks its min", "add `min: 0.5`")
    minimum = reader.number("min", -1e6, 1.0, 1.0)
    below = reader.choice("below", ("drop", "downgrade", "tag"), "downgrade")
    unscored = reader.choice("unscored", ("drop", "downgrade", "pass"), "downgrade")
    reader.finish(unsupported={"min_support"})
    return Fidelity(
        cast(Any, metric),
        cast(float, minimum),
        cast(LowFidelity, below),
        cast(LowFidelity, unscored),
    )


def _detection(reader: Reader, selections: dict[str, Selection]) -> Expression | None:
    """Fill ``selections`` and parse the condition over every name, faulty ones included."""
    if not reader.has("detection"):
        reader.fault(None, "the rule lacks its detection", "add `detection:` with a condition")
        return None
    inner = reader.child("detection")
    names = [name for name in inner.value if name != "condition"]
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
        name = _rule_name(inner)
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
