"""Reads the examples a rule carries under ``tests``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from nae_monitor.detect.figure_reader import MAX_FIGURE
from nae_monitor.detect.figures import ActivationMatcher, ValueMatcher
from nae_monitor.detect.reading import Reader
from nae_monitor.detect.schema import InlineTest, Selection
from nae_monitor.detect.semantic import SemanticMatcher
from nae_monitor.records import FindingState, Severity

FULL_FIDELITY = 1.0  # what a test that gives no fve is judged at; `fve: null` is unscored


def read_tests(reader: Reader, selections: Mapping[str, Selection]) -> tuple[InlineTest, ...]:
    """The tests of a rule; names are made up from their number where missing."""
    found: list[InlineTest] = []
    for number, inner in enumerate(reader.children("tests"), start=1):
        test = _read(inner, number, selections)
        if any(test.name == other.name for other in found):
            inner.fault("name", f"test {test.name!r} is there twice", "rename one")
        found.append(test)
    return tuple(found)


def _read(reader: Reader, number: int, selections: Mapping[str, Selection]) -> InlineTest:
    state, expected = read_expectation(reader)
    if state is FindingState.UNDECIDED:
        reader.fault("expect", "only aggregations are undecided on purpose", "match or no_match")
    test = InlineTest(
        name=reader.text("name", f"test {number}", max_chars=200),
        explanation=reader.text("explanation"),
        prompt=reader.text("prompt", ""),
        output=reader.text("output", ""),
        token=reader.text("token", ""),
        request=_request(reader),
        fidelity=_figure(reader, "fve", (-1e6, 1.0), FULL_FIDELITY),
        percentile=_figure(reader, "percentile", (0.0, 100.0), 100.0),
        gives_percentile=reader.has("percentile"),
        support=_figure(reader, "support", (-2.0, 2.0), math.inf),
        unsupported=_figure(reader, "unsupported", (0.0, 1.0), 0.0),
        scores=_scores(reader, selections),
        expect_match=state is FindingState.MATCH,
        expect_severity=expected.pop("expect_severity", None),
        times_s=_times(reader),
        **expected,
    )
    reader.finish()
    return test


def _figure(reader: Reader, key: str, bounds: tuple[float, float], default: float) -> float | None:
    """A figure of an example; None where it is written as null: not known."""
    if reader.has(key) and reader.value[key] is None:
        return None
    return reader.number(key, *bounds, default)


def _request(reader: Reader) -> Mapping[str, str]:
    if not reader.has("request"):
        return MappingProxyType({})
    inner = reader.child("request")
    return MappingProxyType({key: inner.text(key, "") for key in inner.value})


def _scores(reader: Reader, selections: Mapping[str, Selection]) -> Mapping[str, float]:
    if not reader.has("scores"):
        return MappingProxyType({})
    inner = reader.child("scores")
    limits = {name: limit for name, s in selections.items() if (limit := _limit(s)) is not None}
    found = {
        name: inner.number(name, -limits[name], limits[name])
        for name in inner.value
        if name in limits
    }
    inner.finish(known=limits)
    return MappingProxyType({name: score for name, score in found.items() if score is not None})


def _limit(selection: Selection) -> float | None:
    """How large the figure of a selection may be; None where its answer is no figure."""
    match selection.matcher:
        case SemanticMatcher() | ActivationMatcher(measure="cosine"):
            return 1.0
        case ValueMatcher() | ActivationMatcher():
            return MAX_FIGURE
    return None


def _times(reader: Reader) -> tuple[float, ...]:
    """When the example happens, in seconds: ``hits: [{at: 0}, {at: 60}]``."""
    if not reader.has("hits"):
        return (0.0,)
    times: list[float] = []
    for hit in reader.children("hits"):
        if not hit.has("at"):
            hit.fault(None, "the hit lacks its time", "add `at: 60` (seconds)")
        times.append(hit.number("at", 0, 1e9) or 0.0)
        hit.finish()
    return tuple(times)


def read_expectation(reader: Reader) -> tuple[FindingState, dict[str, Any]]:
    """What a test expects: the state, and the ``expect_*`` fields of its record by name."""
    states = [state.value for state in (FindingState.MATCH, FindingState.NO_MATCH)]
    if not isinstance(reader.value.get("expect"), dict):
        allowed = (*states, FindingState.UNDECIDED.value)
        return FindingState(reader.choice("expect", allowed)), {}
    inner = reader.child("expect")
    matched = inner.boolean("match", True)
    more: dict[str, Any] = {}
    if inner.has("severity"):
        more["expect_severity"] = Severity(inner.choice("severity", [s.value for s in Severity]))
    if inner.has("suppressed"):
        more["expect_suppressed"] = inner.integer("suppressed", 0, 10**6, 0)
    if inner.has("routes"):
        more["expect_routes"] = frozenset(inner.texts("routes", 100))
    inner.finish()
    return FindingState.MATCH if matched else FindingState.NO_MATCH, more
