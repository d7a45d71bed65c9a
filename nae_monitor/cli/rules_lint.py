"""``rules lint``: problems with their place, as text, JSON or SARIF; and their mends."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.rules_options import (
    DEFAULT_ENCODER,
    EncoderOption,
    PathsArgument,
    encoder_or_none,
    rule_count,
    rules_at,
)
from nae_monitor.cli.terminal import errors, json_line, output, printable

if TYPE_CHECKING:
    from nae_monitor.detect.lint import Diagnostic, LintReport

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
EXIT_CODES = {"error": 2, "warning": 1}


class Format(StrEnum):
    """How diagnostics are written."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"


def lint(
    paths: PathsArgument = None,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what has one obvious mend.")] = False,
    form: Annotated[Format, typer.Option("--format", help="How to write them.")] = Format.TEXT,
    as_json: JsonOption = False,
    sampled_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of tokens decoded, to find counts out of reach."),
    ] = None,
    models: Annotated[
        bool, typer.Option(help="Ask the sentence encoder about exemplars and negatives, too.")
    ] = False,
    encoder: EncoderOption = DEFAULT_ENCODER,
) -> None:
    """Check rules: what is wrong, and what loads and will not do what it seems to.

    Exit code 2 where a rule does not load, 1 where there are warnings. `# nae: ignore[NM204]` on
    the line, or alone on the line above, silences a warning. Text goes to standard error.
    """
    from nae_monitor.detect.lint import LintOptions
    from nae_monitor.detect.lint import fix as fix_files
    from nae_monitor.detect.lint import lint as lint_files

    options = LintOptions(sampled_share=sampled_share, encoder=encoder_or_none(models, encoder))
    if fix:
        for file, edits in fix_files(rules_at(paths), options).items():
            errors().print(f"fixed: {file}: {edits} edits", soft_wrap=True)
    report = lint_files(rules_at(paths), options)
    if as_json or form is Format.JSON:
        json_line(_as_json(report))
    elif form is Format.SARIF:
        _print_sarif(report)
    else:
        _print(report)
    if code := EXIT_CODES.get(report.worst or "", 0):
        raise typer.Exit(code)


def _print_sarif(report: LintReport) -> None:
    from nae_monitor.detect.lint import to_sarif
    from nae_monitor.version import __version__

    typer.echo(json.dumps(to_sarif(report.diagnostics, __version__), indent=2))


def _as_json(report: LintReport) -> dict[str, Any]:
    return {
        "rules": _rules(report),
        "fingerprint": report.rule_set.fingerprint if report.rule_set else None,
        "ignored": report.ignored,
        "diagnostics": [_diagnostic(diagnostic) for diagnostic in report.diagnostics],
    }


def _diagnostic(diagnostic: Diagnostic) -> dict[str, Any]:
    return {
        "file": diagnostic.where.file,
        "line": diagnostic.where.line,
        "column": diagnostic.where.column,
        "level": diagnostic.level,
        "code": diagnostic.code,
        "message": diagnostic.message,
        "mend": diagnostic.mend,
        "fixable": diagnostic.edit is not None,
    }


def _print(report: LintReport) -> None:
    from rich.text import Text

    for diagnostic in report.diagnostics:
        line = Text(f"{diagnostic.level}:", style=STYLES[diagnostic.level])
        line.append(" " + printable(str(diagnostic).replace("\n", " ")), style="default")
        errors().print(line, soft_wrap=True)
    ignored = f", {report.ignored} ignored" if report.ignored else ""
    counted = rule_count(_rules(report))
    if not report.diagnostics and report.rule_set is not None:
        shown = report.rule_set.fingerprint[:16]
        output().print(f"{counted}, no problem{ignored}; fingerprint {shown}")
        return
    counts = dict.fromkeys(STYLES, 0)
    for diagnostic in report.diagnostics:
        counts[diagnostic.level] += 1
    fixable = sum(diagnostic.edit is not None for diagnostic in report.diagnostics)
    found = ", ".join(f"{n} {level}{'s' * (n != 1)}" for level, n in counts.items())
    hint = f"; --fix mends {fixable}" if fixable else ""
    output().print(f"{counted}: {found}{ignored}{hint}")


def _rules(report: LintReport) -> int:
    """Rules of either kind; where the set does not load, those that can be read alone."""
    return report.rules if report.rule_set is None else len(report.rule_set)
