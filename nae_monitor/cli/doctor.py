"""``doctor``: everything a start needs, each fault with its mend."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nae_monitor.cli.configuration import ConfigOption, JsonOption, settings_from
from nae_monitor.cli.terminal import json_line, output, printable, quiet_libraries
from nae_monitor.errors import ConfigurationError

if TYPE_CHECKING:
    from nae_monitor.cli.checks import Check
    from nae_monitor.settings import Settings

STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}


def doctor(
    config: ConfigOption = None,
    fetch: Annotated[
        bool, typer.Option(help="Fetch the models that are not cached yet, and check them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check everything a start needs; exit code 2 where there is a fault.

    A warning does not stop a start: a broker that is away, a model not fetched yet.
    """
    checks = list(_checks(config, fetch))
    faults = sum(check.state == "fault" for check in checks)
    if as_json:
        json_line({"ok": not faults, "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        _print(checks)
    if faults:
        raise typer.Exit(2)


def _checks(config: Path | None, fetch: bool) -> Iterator[Check]:
    from nae_monitor.cli.checks import (
        environment,
        models,
        places,
        problem_checks,
        rules,
        sinks,
        workers,
    )

    quiet_libraries()
    yield from environment()
    settings: Settings | None = None
    try:
        settings = settings_from(config)
    except ConfigurationError as error:
        yield from problem_checks("settings", error)
    if settings is None:
        return
    yield _settings_check(config)
    yield from models(settings, fetch=fetch)
    yield from rules(settings)
    yield from sinks(settings)
    yield from places(settings)
    yield from workers(settings)


def _settings_check(config: Path | None) -> Check:
    from nae_monitor.cli.checks import Check

    return Check("settings", "ok", "the embedded default" if config is None else str(config))


def _print(checks: list[Check]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    table = Table("check", "state", Column("what", overflow="fold"), box=None, pad_edge=False)
    for check in checks:
        what = Text(printable(check.message))
        if check.mend:
            what.append(f"\n→ {printable(check.mend)}", style="bold")
        table.add_row(check.name, Text(check.state, style=STYLES[check.state]), what)
    console = output()
    console.print(table)
    faults = sum(check.state == "fault" for check in checks)
    warnings = sum(check.state == "warning" for check in checks)
    console.print(f"{len(checks)} checks: {faults} faults, {warnings} warnings")
