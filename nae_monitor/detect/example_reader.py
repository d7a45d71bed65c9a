"""Reads the examples a rule carries under ``tests``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from nae_monitor.detect.reading import Reader
from nae_monitor.detect.schema import InlineTest, Selection
from nae_monitor.detect.semantic import SemanticMatcher
from nae_monitor.records import Severity

UNSUPPORTED_KEYS = frozenset({"hits", "samples"})
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
    expect_match, expect_severity = _expectation(reader)
    unscored = reader.has("fve") and reader.value["fve"] is None
    test = InlineTest(
        name=reader.text("name", f"test {number}", max_chars=200),
        explanation=reader.text("explanation"),
        prompt=reader.text("prompt", ""),
        output=reader.text("output", ""),
        token=reader.text("token", ""),
        request=_request(reader),
        fidelity=None if unscored else reader.number("fve", -1e6, 1.0, FULL_FIDELITY),
        scores=_scores(reader, selections),
        expect_match=expect_match,
        expect_severity=expect_severity,
    )
    reader.finish(UNSUPPORTED_KEYS)
    return test


def _request(reader: Reader) -> Mapping[str, str]:
    if not reader.has("request"):
        return MappingProxyType({})
    inner = reader.child("request")
    return MappingProxyType({key: inner.text(key, "") for key in inner.value})


def _scores(reader: Reader, selections: Mapping[str, Selection]) -> Mapping[str, float]:
    if not reader.has("scores"):
        return MappingProxyType({})
    inner = reader.child("scores")
    semantic = [n for n, s in selections.items() if isinstance(s.matcher, SemanticMatcher)]
    found = {name: inner.number(name, -1, 1) for name in inner.value if name in semantic}
    inner.finish(known=semantic)
    return MappingProxyType({name: score for name, score in found.items() if score is not None})


def _expectation(reader: Reader) -> tuple[bool, Severity | None]:
    if not isinstance(reader.value.get("expect"), dict):
        return reader.choice("expect", ("match", "no_match")) == "match", None
    inner = reader.child("expect")
    expected = inner.boolean("match", True)
    severity: Severity | None = None
    if inner.has("severity"):
        severity = Severity(inner.choice("severity", [s.value for s in Severity]))
    inner.finish(unsupported={"suppressed", "routes"})
    return expected, severity
