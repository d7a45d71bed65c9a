"""Binding: a document becomes frozen dataclasses, or every problem of it is named at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.binding import bind
from nae_monitor.errors import ConfigurationError, Problem
from nae_monitor.strict_yaml import Document, read_document


@dataclass(frozen=True)
class Inner:
    size: int = 3
    share: float = 0.5
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("size is negative")


@dataclass(frozen=True)
class Outer:
    name: str
    flag: bool = False
    note: str | None = None
    items: tuple[int, ...] = ()
    inner: Inner = field(default_factory=Inner)


def bound(text: str) -> Outer:
    return bind(read_document("f", text), Outer)


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        bound(text)
    return [str(problem) for problem in caught.value.problems]


def test_values_and_defaults_are_bound() -> None:
    text = "name: x\nnote: null\nitems: [1, 2]\ninner: {share: 1, kind: b}"
    assert bound(text) == Outer("x", items=(1, 2), inner=Inner(share=1.0, kind="b"))


def test_an_empty_section_means_its_defaults() -> None:
    assert bound("name: x\ninner:") == Outer("x")


def test_every_problem_is_reported_at_once_with_its_place() -> None:
    text = "flag: 1\nitems: [1, x, 2.5]\ninner:\n  sise: 4\n  share: no\n  kind: c"
    places = [problem.split(":")[1] for problem in problems_of(text)]
    assert sorted(places) == ["1", "1", "2", "2", "4", "5", "6"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inner: {}", "lacks the key 'name' (add `name: …`)"),
        ("name: x\nnmae: y", "unknown key 'nmae' in the file (did you mean 'name'?)"),
        ("name: x\ninner: {kind: c}", "kind is 'c' (one of: a, b)"),
        ("name: x\ninner: {size: true}", "size is True (expected int)"),
        ("name: x\ninner: {size: -1}", "inner: size is negative"),
        ("name: x\nflag: 0", "flag is 0 (expected bool)"),
        ("name: x\nitems: 3", "items must be a list (write it as [a, b])"),
        ("name: x\ninner: [1]", "inner must be a mapping"),
        ("- a", "the file must be a mapping"),
        ("name: 3", "name is 3 (expected str)"),
        ("name: 2026-01-01", "(expected str)"),
    ],
)
def test_a_problem_says_what_and_how_to_mend_it(text: str, said: str) -> None:
    (problem,) = problems_of(text)
    assert said in problem


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1.0e+400"])
def test_a_number_that_is_not_finite_is_refused(number: str) -> None:
    (problem,) = problems_of(f"name: x\ninner: {{share: {number}}}")
    assert "expected a finite number" in problem


def test_a_huge_value_is_cut_in_the_message() -> None:
    (problem,) = problems_of(f"name: [{'1,' * 10_000}]")
    assert len(problem) < 200


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(["name", "flag", "note", "items", "inner", "size", "other"])


@given(st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES)) | VALUES)
def test_any_value_is_bound_or_refused(value: Any) -> None:
    found: Outer | None = None
    problems: tuple[Problem, ...] = ()
    try:
        found = bind(Document(value, {}, "f"), Outer)
    except ConfigurationError as error:
        problems = error.problems
    assert problems or (found is not None and isinstance(found.name, str))
    assert found is None or found.inner.share == found.inner.share  # never NaN
