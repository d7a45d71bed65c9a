"""``alerts``: alerts that were sent. ``tail`` reads them as they come; the others are elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nae_monitor.cli import alerts_source as source
from nae_monitor.cli.alerts_export import export, schema
from nae_monitor.cli.alerts_resend import resend
from nae_monitor.cli.alerts_triage import STYLES, ack, label, labels, list_alerts, show, take_in
from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.terminal import json_line, output, printable

if TYPE_CHECKING:
    from nae_monitor.alert import ReadAlert

alerts_app = typer.Typer(no_args_is_help=True, help="Alerts that were sent: read, judge, export.")


@alerts_app.callback()
def group() -> None:
    """Alerts that were sent: read, judge, export."""


@alerts_app.command()
def tail(
    file: Annotated[Path | None, typer.Argument(help="A file of the jsonl sink.")] = None,
    kafka: source.KafkaOption = None,
    topic: source.TopicOption = None,
    config: source.ReadConfigOption = None,
    group: source.GroupOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for further alerts until Ctrl-C.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print alerts, oldest first. What is no alert event is skipped and counted."""
    reader = source.reader_of(file, kafka, topic, group, follow, config)
    try:
        _show(reader, as_json)
    finally:
        source.tell_skipped(reader)


def _show(alerts: Iterable[ReadAlert], as_json: bool) -> None:
    from rich.text import Text

    console = output()
    for alert in alerts:
        if as_json:
            json_line({**alert.attributes, "data": alert.data})
            continue
        severity = alert.severity
        line = Text(f"{printable(alert.time)} ")
        line.append(printable(severity).upper(), style=STYLES.get(severity, ""))
        line.append(f" {_summary(alert)}")
        console.print(line, soft_wrap=True)


def _summary(alert: ReadAlert) -> str:
    """Title, rule, request and tokens; data came from outside, so any of it may be missing."""
    info = alert.data.get("finding_info")
    more = alert.data.get("unmapped")
    info = info if isinstance(info, dict) else {}
    more = more if isinstance(more, dict) else {}
    analytic = info.get("analytic")
    rule = analytic.get("name") if isinstance(analytic, dict) else None
    first, last = more.get("nae.first_position"), more.get("nae.last_position")
    where = f"token {first}" if first == last else f"tokens {first} to {last}"
    text = f"{info.get('title')} [{rule}] request {alert.attributes.get('subject')}, {where}"
    return printable(text.replace("\n", " "))


alerts_app.command("import")(take_in)
alerts_app.command("list")(list_alerts)
alerts_app.command()(show)
alerts_app.command()(ack)
alerts_app.command()(label)
alerts_app.command()(labels)
alerts_app.command()(export)
alerts_app.command()(schema)
alerts_app.command()(resend)
