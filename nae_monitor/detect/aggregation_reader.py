"""Reads one YAML document as an :class:`AggregationRule`."""

from __future__ import annotations

from typing import Any, cast, get_args

from nae_monitor.detect.aggregation import (
    COMPARISONS,
    RULE_FIELD,
    STEP_TYPES,
    AggregationRule,
    AggregationTest,
    AggregationType,
    Window,
    WindowUnit,
)
from nae_monitor.detect.example_reader import read_expectation
from nae_monitor.detect.header_reader import read_header
from nae_monitor.detect.reading import Reader
from nae_monitor.detect.response_reader import (
    read_actions,
    read_duration,
    read_group_by,
    read_suppression,
)
from nae_monitor.errors import Problem
from nae_monitor.strict_yaml import Document

MAX_WINDOW_TOKENS = 10**7
MAX_WINDOW_SAMPLES = 10**6
_NOT_OURS = ("title", "id", "name", "version", "severity", "risk_score", "tags", "enabled")


def read_aggregation_rule(document: Document) -> tuple[AggregationRule | None, list[Problem]]:
    """The aggregation rule a document holds, or None and everything that is wrong with it."""
    problems: list[Problem] = []
    reader = Reader(document, (), problems)
    header = read_header(reader)
    inner = reader.child("aggregation")
    body = _body(inner)
    suppress = read_suppression(reader)
    actions = read_actions(reader, header["enforcement"])
    tests = _tests(reader, (*body["rules"], *body["absent"]))
    if "detection" in reader.value:
        reader.has("detection")
        mend = "write the detection as a rule of its own and name it under rules"
        reader.fault("detection", "a rule has either detection or aggregation", mend)
    reader.finish()
    if problems:
        return None, problems
    rule = AggregationRule(
        **{name: header[name] for name in _NOT_OURS},
        **body,
        file=document.file,
        canonical=document.value,
        suppress=suppress,
        actions=actions,
        tests=tests,
        header={name: value for name, value in header.items() if name not in _NOT_OURS},
    )
    return rule, problems


def _body(reader: Reader) -> dict[str, Any]:
    kind = cast(AggregationType, reader.choice("type", get_args(AggregationType)))
    rules = _names(reader, "rules")
    if not rules:
        reader.fault(None, "aggregation lists no rule", "write `rules: [a_rule, …]`")
    if kind in STEP_TYPES and len(rules) == 1:
        reader.fault("rules", f"{kind} needs two rules or more", "name the steps")
    window = _window(reader)
    group_by = read_group_by(reader)
    if window.unit == "tokens" and "request_id" not in group_by:
        mend = "group by request_id, or use a window of samples or time"
        reader.fault("window", "tokens of different requests have no common count", mend)
    thresholds, value_field = _condition(reader, kind)
    absent = _names(reader, "absent")
    for name in set(absent) & set(rules):
        reader.fault("absent", f"{name!r} is both asked for and barred", "remove one")
    min_samples = cast(int, reader.integer("min_samples", 1, 10**6, 1))
    if window.unit in ("tokens", "samples") and min_samples > window.size:
        message = f"min_samples {min_samples} cannot fit into a window of {window.size}"
        reader.fault("min_samples", message, "lower it, or widen the window")
    reader.finish()
    return {
        "type": kind,
        "rules": rules,
        "window": window,
        "group_by": group_by,
        "thresholds": thresholds,
        "value_field": value_field,
        "min_samples": min_samples,
        "absent": absent,
    }


def _names(reader: Reader, key: str) -> tuple[str, ...]:
    names = reader.texts(key, 64)
    for index, name in enumerate(names):
        if name in names[:index]:
            reader.item_fault(key, index, "is there twice", "remove one")
    return tuple(dict.fromkeys(names))


def _window(reader: Reader) -> Window:
    if not reader.has("window"):
        reader.fault(None, "aggregation lacks its window", "add `window: {tokens: 256}`")
        return Window("tokens", 1)
    inner = reader.child("window")
    units = [unit for unit in get_args(WindowUnit) if unit in inner.value]
    size: int | None = None
    if len(units) != 1:
        inner.fault(None, "window needs one measure", "one of: tokens, samples, time")
    elif units == ["time"]:
        size = read_duration(inner, "time")
    else:
        limit = MAX_WINDOW_TOKENS if units == ["tokens"] else MAX_WINDOW_SAMPLES
        size = inner.integer(units[0], 1, limit)
    inner.finish(known=get_args(WindowUnit))
    return Window(cast(WindowUnit, units[0] if units else "tokens"), size or 1)


def _condition(reader: Reader, kind: AggregationType) -> tuple[tuple[tuple[str, float], ...], str]:
    if not reader.has("condition"):
        if kind not in STEP_TYPES:
            reader.fault(None, "aggregation lacks its condition", "add `condition: {gte: 3}`")
        return (), ""
    inner = reader.child("condition")
    if kind in STEP_TYPES:
        reader.fault("condition", f"{kind} takes no condition", "remove it")
        return (), ""
    limit = 1.0 if kind == "event_rate" else 1e9
    bounds = [
        (name, bound) for name in COMPARISONS if (bound := inner.number(name, 0, limit)) is not None
    ]
    if not bounds and not set(COMPARISONS) & set(inner.value):
        inner.fault(None, "condition compares with nothing", "write `gte: 3`")
    value_field = ""
    if kind == "value_count":
        value_field = inner.text("field", max_chars=80).removeprefix("request.") or RULE_FIELD
    inner.finish(known=(*COMPARISONS, *(["field"] if kind == "value_count" else [])))
    return tuple(bounds), value_field


def _tests(reader: Reader, rules: tuple[str, ...]) -> tuple[AggregationTest, ...]:
    found: list[AggregationTest] = []
    for number, inner in enumerate(reader.children("tests"), start=1):
        test = _test(inner, number, rules)
        if any(test.name == other.name for other in found):
            inner.fault("name", f"test {test.name!r} is there twice", "rename one")
        found.append(test)
    return tuple(found)


def _test(reader: Reader, number: int, rules: tuple[str, ...]) -> AggregationTest:
    hits: list[tuple[str, float]] = []
    if not reader.has("hits"):
        reader.fault(None, "the test lacks its hits", "add `hits: [{rule: …, at: 10}]`")
    for hit in reader.children("hits"):
        hits.append((hit.choice("rule", rules or ("",)), hit.number("at", 0, 1e9) or 0.0))
        if not hit.has("at"):
            hit.fault(None, "the hit lacks its place", "add `at: 10`")
        hit.finish()
    if reader.has("samples") and reader.has("rate"):
        reader.fault("rate", "samples and rate say the same", "keep one")
    state, more = read_expectation(reader)
    test = AggregationTest(
        name=reader.text("name", f"test {number}", max_chars=200),
        hits=tuple(hits),
        samples=reader.integer("samples", 0, 10_000),
        rate=reader.number("rate", 0, 1),
        expect=state,
        **more,
    )
    reader.finish()
    return test
