"""One line of the doctor's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nae_monitor.errors import ConfigurationError, Problem

State = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, and how to mend it."""

    name: str
    state: State
    message: str
    mend: str = ""


def problem_checks(name: str, error: ConfigurationError) -> list[Check]:
    """A fault for each problem of an error."""
    if not error.problems:
        return [Check(name, "fault", str(error))]
    return [problem_check(name, problem) for problem in error.problems]


def problem_check(name: str, problem: Problem) -> Check:
    """A fault from a problem."""
    return Check(name, "fault", f"{problem.where}: {problem.message}", problem.mend)
