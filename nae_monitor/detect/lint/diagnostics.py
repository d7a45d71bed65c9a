"""What lint says: one record a finding, and the catalogue of codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from nae_monitor.errors import Mark, Problem

Level = Literal["error", "warning", "note"]
GENERAL = "NM100"


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of diagnostic."""

    level: Level
    title: str


@dataclass(frozen=True, slots=True)
class Edit:
    """A replacement within one line of a file; line and column count from 1."""

    file: str
    line: int
    column: int  # characters
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing lint found: where, what, how to mend it, and the edit that does where it is safe.

    Errors keep a rule from loading; warnings say it will not do what it seems to; notes inform.
    """

    where: Mark
    level: Level
    code: str
    message: str
    mend: str = ""
    edit: Edit | None = None

    def __str__(self) -> str:
        return str(Problem(self.where, self.message, self.mend, self.code))


def _codes() -> dict[str, Code]:
    errors = {
        GENERAL: "the document does not say what a rule file may say",
        "NM101": "unknown key",
        "NM102": "an id or name that another document has",
        "NM304": "a direction that cannot be used",
        "NM105": "the rules take more together than a set may",
        "NM103": "a part of the language that this version does not support",
        "NM110": "the condition names no selection",
        "NM111": "a selection that is never used",
        "NM201": "a pattern that RE2 cannot run",
        "NM202": "a pattern that matches empty text",
        "NM312": "risk_score outside the band of the severity",
    }
    warnings = {
        "NM120": "a condition that is contradictory, always true, or does not need a selection",
        "NM203": "a keyword of under 4 characters that may match inside words",
        "NM204": "a fuzzy phrase under 12 characters, or a fuzzy score under 80",
        "NM205": "a selection that matches more than 5 % of ordinary texts",
        "NM301": "a semantic threshold without negatives",
        "NM302": "an exemplar that its own selection does not match",
        "NM303": "a negative that its own selection matches",
        "NM401": "a gate on cosine, which does not carry over between NLA pairs",
        "NM501": "a count that the sampling can never reach",
        "NM503": "a scope on a phase that is never captured",
        "NM502": "generation is stopped on a single text selection",
        "NM601": "no test that expects a match, or none that expects no match",
        "NM602": "an exception that has expired",
    }
    found = {code: Code("error", title) for code, title in errors.items()}
    found.update({code: Code("warning", title) for code, title in warnings.items()})
    found["NM104"] = Code("note", "an ignore comment that silences nothing")
    return dict(sorted(found.items()))


CODES: Mapping[str, Code] = MappingProxyType(_codes())


def diagnose(code: str, where: Mark, message: str, mend: str = "") -> Diagnostic:
    """A diagnostic at the level its code has."""
    return Diagnostic(where, CODES[code].level, code, message, mend)


def from_problem(problem: Problem, edit: Edit | None = None) -> Diagnostic:
    """A problem that keeps a rule from loading."""
    code = problem.code or GENERAL
    return Diagnostic(problem.where, "error", code, problem.message, problem.mend, edit)
