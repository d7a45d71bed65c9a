"""``alerts export`` and ``alerts schema``: for other tools."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nae_monitor.cli import alerts_source as source
from nae_monitor.cli.terminal import json_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nae_monitor.alert.triage import Triaged


class Format(StrEnum):
    """What other tools read."""

    SARIF = "sarif"
    OCSF = "ocsf"
    CSV = "csv"


def export(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Files of the jsonl sink. Without: the triage store."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.SARIF,
    store: source.StoreOption = None,
) -> None:
    """Write alerts to standard output: a SARIF 2.1.0 log, OCSF findings a line each, or CSV.

    From the triage store, false positives are suppressed and what was taken on is in progress.
    """
    from nae_monitor.alert import export as formats

    alerts = _of_files(files) if files else _of_store(store)
    if form is Format.CSV:
        for line in formats.csv_text(alerts):
            typer.echo(line, nl=False)
    elif form is Format.OCSF:
        for finding in formats.ocsf_findings(alerts):
            json_line(finding)
    else:
        typer.echo(json.dumps(formats.sarif_log(alerts), indent=2))


def schema(
    asyncapi: Annotated[
        bool, typer.Option("--asyncapi", help="The AsyncAPI 3 document of the topic instead.")
    ] = False,
    event: Annotated[
        bool, typer.Option("--event", help="Of a whole line of the jsonl sink instead.")
    ] = False,
    topic: Annotated[str, typer.Option(help="The topic that the document names.")] = source.TOPIC,
) -> None:
    """Print the JSON Schema (draft 2020-12) of an alert event's value, the OCSF finding."""
    from nae_monitor.alert.asyncapi import asyncapi_document
    from nae_monitor.alert.event_schema import event_schema, value_schema

    if asyncapi and event:
        raise typer.BadParameter("--asyncapi or --event, not both")
    document = asyncapi_document(topic) if asyncapi else event_schema() if event else value_schema()
    typer.echo(json.dumps(document, indent=2))


def _of_files(files: list[Path]) -> Iterator[Triaged]:
    from nae_monitor.alert import JsonlTail
    from nae_monitor.alert.triage import Triaged

    for file in files:
        tail = JsonlTail(file)
        for alert in tail:
            yield Triaged(alert)
        source.tell_skipped(tail)


def _of_store(path: Path | None) -> Iterator[Triaged]:
    with source.open_store(path) as opened:
        yield from opened.alerts()
