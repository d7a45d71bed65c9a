"""``alerts tail``: alerts from a JSON Lines file or a Kafka topic, readable."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nae_monitor.cli.alerts_resend import resend
from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.terminal import error_line, json_line, output, printable

if TYPE_CHECKING:
    from nae_monitor.alert import JsonlTail, KafkaTail, ReadAlert

alerts_app = typer.Typer(no_args_is_help=True, help="Alerts that were sent: read them.")
STYLES = {
    "informational": "cyan",
    "low": "green",
    "medium": "yellow",
    "high": "red",
    "critical": "bold white on red",
}
KAFKA_QUIET_S = 5.0
alerts_app.command()(resend)


@alerts_app.callback()
def group() -> None:
    """Alerts that were sent: read them."""


@alerts_app.command()
def tail(
    file: Annotated[Path | None, typer.Argument(help="A file of the jsonl sink.")] = None,
    kafka: Annotated[
        str | None, typer.Option("--kafka", metavar="HOST:PORT", help="Brokers of the kafka sink.")
    ] = None,
    topic: Annotated[str, typer.Option(help="The kafka sink's topic.")] = "nae.alerts",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for further alerts until Ctrl-C.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print alerts, oldest first. What is no alert event is skipped and counted."""
    reader = _reader(file, kafka, topic, follow)
    try:
        _show(reader, as_json)
    finally:
        if reader.skipped:
            error_line(f"{reader.skipped} entries are no alert events and were skipped", "note: ")


def _reader(
    file: Path | None, kafka: str | None, topic: str, follow: bool
) -> JsonlTail | KafkaTail:
    from nae_monitor.alert import JsonlTail, KafkaTail

    if (file is None) == (kafka is None):
        raise typer.BadParameter("name either a file or --kafka HOST:PORT")
    if file is not None:
        return JsonlTail(file, follow=follow)
    _refuse_silent_broker(kafka or "", topic)
    return KafkaTail(kafka or "", topic, timeout_s=math.inf if follow else KAFKA_QUIET_S)


def _refuse_silent_broker(bootstrap: str, topic: str) -> None:
    """Raise ConfigurationError where nobody answers: it would look like a topic without alerts."""
    from nae_monitor.alert import kafka_address
    from nae_monitor.cli.network import unreachable_brokers
    from nae_monitor.errors import ConfigurationError, Mark, Problem
    from nae_monitor.settings import KafkaSettings

    where = Mark("--kafka")
    problems = kafka_address.check(KafkaSettings(bootstrap, topic), where)
    if not problems and (why := unreachable_brokers(kafka_address.servers(bootstrap))):
        problems = [Problem(where, why, "start the broker, or name another")]
    if problems:
        raise ConfigurationError(problems)


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
