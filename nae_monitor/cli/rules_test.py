"""``rules test``: the tests that rules carry, and what they cover."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nae_monitor.cli import rules_options as options
from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.terminal import json_line, output, printable

if TYPE_CHECKING:
    from nae_monitor.detect import TestResult
    from nae_monitor.detect.tools.coverage import RuleCoverage

STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def run_tests(
    paths: options.PathsArgument = None,
    name: options.NameOption = None,
    strict: Annotated[bool, typer.Option(help="A skipped test is a failure.")] = False,
    models: options.ModelsOption = True,
    encoder: options.EncoderOption = options.DEFAULT_ENCODER,
    calibration: options.CalibrationOption = None,
    junit: Annotated[Path | None, typer.Option(help="Write the results as JUnit XML.")] = None,
    with_coverage: Annotated[
        bool, typer.Option("--coverage", help="Show what the tests exercise, by selection.")
    ] = False,
    minimum: Annotated[
        float, typer.Option("--min", min=0, max=100, help="Least coverage of each rule, percent.")
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Run the inline tests of rules. Exit code 1 where one fails, or a rule is covered too little.

    A test that needs a model which was not loaded is SKIPPED, never passed. A selection is covered
    when one test makes it match, one does not, and one that expects no match hangs on its answer.
    With --calibration, a test that gives no percentile is judged at that of its FVE, else at 100.
    """
    from nae_monitor.detect import run_inline_tests
    from nae_monitor.detect.tools.coverage import coverage
    from nae_monitor.detect.tools.junit import to_junit

    chosen, model = options.rules_and_encoder(paths, name, models, encoder)
    scale = options.calibration_of(calibration)[0] if calibration is not None else None
    results = run_inline_tests(chosen, model, scale)
    covered = coverage(chosen.rules, model) if with_coverage or minimum else []
    low = [rule for rule in covered if rule.percent < minimum]
    counts: Counter[str] = Counter(result.outcome for result in results)
    if junit is not None:
        junit.write_bytes(to_junit(results))
    if as_json:
        json_line(_as_json(results, counts, covered))
    else:
        _print(results, counts, len(chosen))
        _print_coverage(covered, low, minimum)
    if counts["failed"] or (strict and counts["skipped"]) or low:
        raise typer.Exit(1)


def _as_json(
    results: list[TestResult], counts: Mapping[str, int], covered: list[RuleCoverage]
) -> dict[str, Any]:
    value: dict[str, Any] = {
        "counts": dict(counts),
        "results": [
            {
                "rule": result.rule_name,
                "test": result.test_name,
                "outcome": result.outcome,
                "message": result.message,
            }
            for result in results
        ],
    }
    if covered:
        value["coverage"] = [_coverage_as_json(rule) for rule in covered]
    return value


def _coverage_as_json(rule: RuleCoverage) -> dict[str, Any]:
    return {
        "rule": rule.rule_name,
        "percent": round(rule.percent, 2),
        "match": rule.matched,
        "no_match": rule.not_matched,
        "selections": {
            s.name: {"hit": s.hit, "missed": s.missed, "negative_tested": s.negative_tested}
            for s in rule.selections
        },
    }


def _print(results: list[TestResult], counts: Mapping[str, int], rules: int) -> None:
    from rich.text import Text

    console = output()
    for result in results:
        if result.outcome != "passed":
            line = Text(result.outcome.upper(), style=STYLES[result.outcome])
            line.append(
                f" {result.rule_name}: {result.test_name}: {printable(result.message)}",
                style="default",
            )
            console.print(line, soft_wrap=True)
    summary = ", ".join(f"{counts.get(outcome, 0)} {outcome}" for outcome in STYLES)
    console.print(f"{options.rule_count(rules)}: {summary}")


def _print_coverage(covered: list[RuleCoverage], low: list[RuleCoverage], minimum: float) -> None:
    from rich.table import Table

    if not covered:
        return
    console = output()
    table = Table("rule", "selection", "hit", "missed", "negative", box=None, pad_edge=False)
    for rule in covered:
        table.add_row(
            rule.rule_name, f"{rule.percent:.0f} %", _yes(rule.matched), _yes(rule.not_matched), ""
        )
        for s in rule.selections:
            table.add_row("", s.name, _yes(s.hit), _yes(s.missed), _yes(s.negative_tested))
    console.print(table)
    for rule in low:
        console.print(f"{rule.rule_name}: {rule.percent:.1f} % covered, under {minimum:g} %")


def _yes(value: bool) -> str:
    return "yes" if value else "NO"
