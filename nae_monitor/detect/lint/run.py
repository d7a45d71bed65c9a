"""Runs every check over rule files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nae_monitor.detect.bounds import CODE as OVER_BOUNDS
from nae_monitor.detect.lint.conditions import check_condition, check_stop
from nae_monitor.detect.lint.diagnostics import Diagnostic, Level, from_problem
from nae_monitor.detect.lint.documents import (
    check_count,
    check_expiry,
    check_gate,
    check_phase,
    check_tests,
)
from nae_monitor.detect.lint.fixes import edit_for, fixed
from nae_monitor.detect.lint.ignores import without_ignored
from nae_monitor.detect.lint.selections import (
    check_benign,
    check_fuzzy,
    check_keywords,
    check_negatives,
    check_sentences,
)
from nae_monitor.detect.lint.subject import LintOptions, LintSubject
from nae_monitor.detect.packs import RuleSet, load_rules
from nae_monitor.detect.rule_reader import read_rule
from nae_monitor.detect.schema import Rule
from nae_monitor.detect.sources import rule_files
from nae_monitor.errors import ConfigurationError, Problem, RuleError
from nae_monitor.strict_yaml import (
    MAX_FILE_BYTES,
    Document,
    read_documents,
    read_regular_file,
)

MAX_FIX_ROUNDS = 5
CHECKS: tuple[Callable[[LintSubject], Iterator[Diagnostic]], ...] = (
    check_condition,
    check_stop,
    check_keywords,
    check_fuzzy,
    check_benign,
    check_negatives,
    check_sentences,
    check_gate,
    check_count,
    check_phase,
    check_tests,
    check_expiry,
)


@dataclass(frozen=True, slots=True)
class LintReport:
    """What lint found, in the order of the files. ``rule_set`` is None where one did not load."""

    diagnostics: tuple[Diagnostic, ...]
    rules: int  # documents that make a rule
    ignored: int  # diagnostics taken by inline comments
    rule_set: RuleSet | None

    @property
    def worst(self) -> Level | None:
        """The gravest level found."""
        levels: tuple[Level, ...] = ("error", "warning", "note")
        found = {diagnostic.level for diagnostic in self.diagnostics}
        return next((level for level in levels if level in found), None)


def lint(paths: Sequence[str | Path], options: LintOptions | None = None) -> LintReport:
    """Check rule files; a file that does not load is reported and does not hide the others.

    Raises:
        RuleError: a path where no rule file is.
        ConfigurationError: the encoder fails on the rules' own sentences.
    """
    options = options or LintOptions()
    files = rule_files(paths)
    sources = {str(file): _text(file) for file in files}
    rule_set, problems = _load(paths)
    loaded = {rule.id: rule for rule in rule_set.rules} if rule_set else None
    if any(problem.code == OVER_BOUNDS for problem in problems):
        loaded = {}  # they are not compiled one by one either
    found = [_with_edit(problem, problems, sources) for problem in problems]
    rules = 0
    for document in _documents(files):
        rule = _rule(document, loaded)
        rules += rule is not None
        if isinstance(document.value, dict):
            subject = LintSubject(document, rule, options)
            found.extend(diagnostic for check in CHECKS for diagnostic in check(subject))
    kept, ignored = without_ignored(found, sources)
    order = {str(file): number for number, file in enumerate(files)}
    kept.sort(key=lambda d: (order.get(d.where.file, -1), d.where.line, d.where.column, d.code))
    return LintReport(tuple(kept), rules, ignored, rule_set)


def fix(paths: Sequence[str | Path], options: LintOptions | None = None) -> dict[Path, int]:
    """Mend what can be mended safely; returns the edits made, by file.

    A file is written only where its diagnostics get fewer.
    """
    options = options or LintOptions()
    done: dict[Path, int] = {}
    for file in rule_files(paths):
        for _ in range(MAX_FIX_ROUNDS):  # one mend may bring another to light
            edits = _fix_once(file, options)
            if not edits:
                break
            done[file] = done.get(file, 0) + edits
    return done


def _fix_once(file: Path, options: LintOptions) -> int:
    before = lint([file], options).diagnostics
    text = _text(file)
    mended, edits = fixed(text, before)
    if not edits:
        return 0
    file.write_text(mended, encoding="utf-8")
    if len(lint([file], options).diagnostics) < len(before):
        return edits
    file.write_text(text, encoding="utf-8")
    return 0


def _with_edit(
    problem: Problem, problems: Sequence[Problem], sources: Mapping[str, str]
) -> Diagnostic:
    """The problem as a diagnostic, with its mend where that is safe now."""
    others = any(p.code != "NM312" and p.where.file == problem.where.file for p in problems)
    if others and problem.code == "NM312":  # the severity itself may be what is at fault
        return from_problem(problem)
    lines = sources.get(problem.where.file, "").splitlines()
    return from_problem(problem, edit_for(problem, lines))


def _load(paths: Sequence[str | Path]) -> tuple[RuleSet | None, tuple[Problem, ...]]:
    try:
        return load_rules(paths), ()
    except RuleError as error:
        return None, error.problems


def _rule(document: Document, loaded: dict[str, Rule] | None) -> Rule | None:
    """The rule of a document; read alone where the set as a whole did not load."""
    if not isinstance(document.value, dict) or "detection" not in document.value:
        return None
    if loaded is not None:
        return loaded.get(str(document.value.get("id", "")).lower())
    return read_rule(document)[0]


def _documents(files: Sequence[Path]) -> Iterator[Document]:
    for file in files:
        try:
            yield from read_documents(file)
        except ConfigurationError:
            continue  # among the problems already


def _text(file: Path) -> str:
    try:
        return read_regular_file(file, MAX_FILE_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""  # among the problems already
