"""The exception tree: what a message looks like and what the process ends with."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from nae_monitor import errors
from nae_monitor.errors import ConfigurationError, Mark, NaeMonitorError, Problem


def tree(cls: type[NaeMonitorError] = NaeMonitorError) -> Iterator[type[NaeMonitorError]]:
    yield cls
    for below in cls.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from tree(below)


def test_the_docstring_draws_the_tree_with_its_exit_codes() -> None:
    drawn = dict(re.findall(r"── (\w+) +(\d)", errors.__doc__ or ""))
    assert drawn == {c.__name__: str(c.exit_code) for c in tree() if c is not NaeMonitorError}


@pytest.mark.parametrize("cls", list(tree()))
def test_no_error_ends_with_success(cls: type[NaeMonitorError]) -> None:
    assert cls.exit_code in (1, 2, 3)


def test_a_problem_says_where_what_and_how_to_mend_it() -> None:
    problem = Problem(Mark("a.yaml", 3, 7), "is odd", "make it even", "NM1")
    assert str(problem) == "a.yaml:3:7: is odd (make it even) [NM1]"


def test_a_problem_of_a_whole_file_shows_no_line() -> None:
    assert str(Problem(Mark("a.yaml"), "is odd")) == "a.yaml: is odd"


def test_a_configuration_error_shows_every_problem_on_a_line() -> None:
    error = ConfigurationError([Problem(Mark("a"), "x"), Problem(Mark("b"), "y")])
    assert str(error).splitlines() == ["a: x", "b: y"]
    assert len(error.problems) == 2


def test_a_configuration_error_of_plain_text_has_no_problems() -> None:
    assert ConfigurationError("no").problems == ()
