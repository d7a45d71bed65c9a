"""``rules``: load rule packs and run the examples they carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.terminal import json_line, output, printable, quiet_libraries
from nae_monitor.settings import DetectSettings

if TYPE_CHECKING:
    from nae_monitor.detect import Encoder, RuleSet, TestResult

rules_app = typer.Typer(no_args_is_help=True, help="Rule packs: check and test them.")
PathsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Rule files or directories; without one, the shipped pack (builtin)."),
]
STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


@rules_app.command("test")
def run_tests(
    paths: PathsArgument = None,
    name: Annotated[
        str | None, typer.Option("-k", help="Only rules whose name holds this text.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="A skipped test is a failure.")] = False,
    models: Annotated[
        bool, typer.Option(help="Load the sentence encoder for semantic selections.")
    ] = True,
    encoder: Annotated[
        str, typer.Option(help="The sentence encoder: embedded/… or a directory.")
    ] = DetectSettings().encoder or "",
    as_json: JsonOption = False,
) -> None:
    """Run the inline tests of rules. Exit code 1 where one fails.

    A test that needs a model which was not loaded is SKIPPED, never passed.
    """
    from nae_monitor.detect import load_rules, run_inline_tests

    chosen = _chosen(load_rules(paths or ["builtin"]), name)
    results = run_inline_tests(chosen, _load_encoder(encoder) if models else None)
    counts: Counter[str] = Counter(result.outcome for result in results)
    if as_json:
        json_line({"counts": dict(counts), "results": [_as_json(r) for r in results]})
    else:
        _print(results, counts, len(chosen))
    if counts["failed"] or (strict and counts["skipped"]):
        raise typer.Exit(1)


@rules_app.command()
def lint(paths: PathsArgument = None, as_json: JsonOption = False) -> None:
    """Load rules and name every problem with its place. Exit code 2 where there is one."""
    from nae_monitor.detect import load_rules

    found = load_rules(paths or ["builtin"])
    if as_json:
        json_line({"rules": len(found), "fingerprint": found.fingerprint})
    else:
        output().print(f"{len(found)} rules, no problem; fingerprint {found.fingerprint[:16]}")


def _chosen(rules: RuleSet, name: str | None) -> RuleSet:
    from nae_monitor.detect import RuleSet

    if name is None:
        return rules
    kept = [rule for rule in rules.rules if name in rule.name]
    if not kept:
        known = ", ".join(sorted(rule.name for rule in rules.rules))
        raise typer.BadParameter(f"no rule's name holds {name!r}; there are: {known}")
    return RuleSet.of(kept)


def _load_encoder(name: str) -> Encoder:
    from nae_monitor.models import load_encoder

    quiet_libraries()
    return load_encoder(name)


def _as_json(result: TestResult) -> dict[str, str]:
    return {
        "rule": result.rule_name,
        "test": result.test_name,
        "outcome": result.outcome,
        "message": result.message,
    }


def _print(results: list[TestResult], counts: Mapping[str, int], rules: int) -> None:
    from rich.text import Text

    console = output()
    for result in results:
        if result.outcome != "passed":
            line = Text(result.outcome.upper(), style=STYLES[result.outcome])
            line.append(f" {result.rule_name}: {result.test_name}: {printable(result.message)}")
            console.print(line, soft_wrap=True)
    summary = ", ".join(f"{counts.get(outcome, 0)} {outcome}" for outcome in STYLES)
    console.print(f"{rules} rules: {summary}")
