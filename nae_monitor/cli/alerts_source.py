"""Where ``alerts`` commands read from: a file, a topic, or the triage store."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nae_monitor.cli.terminal import error_line

if TYPE_CHECKING:
    from nae_monitor.alert import JsonlTail, KafkaTail
    from nae_monitor.alert.triage import TriageStore

KAFKA_QUIET_S = 5.0
KafkaOption = Annotated[
    str | None, typer.Option("--kafka", metavar="HOST:PORT", help="Brokers of the kafka sink.")
]
TopicOption = Annotated[str, typer.Option(help="The kafka sink's topic.")]
GroupOption = Annotated[
    str | None, typer.Option(help="Consumer group: go on where it was. Without: from the oldest.")
]
StoreOption = Annotated[
    Path | None,
    typer.Option(help="The triage store, an SQLite file. Without: one in your state directory."),
]


def reader_of(
    file: Path | None,
    kafka: str | None,
    topic: str,
    group: str | None = None,
    follow: bool = False,
) -> JsonlTail | KafkaTail:
    """The one source that was named."""
    from nae_monitor.alert import JsonlTail, KafkaTail

    if (file is None) == (kafka is None):
        raise typer.BadParameter("name either a file or --kafka HOST:PORT")
    if file is not None:
        return JsonlTail(file, follow=follow)
    _refuse_silent_broker(kafka or "", topic)
    quiet_s = math.inf if follow else KAFKA_QUIET_S
    return KafkaTail(kafka or "", topic, group=group, timeout_s=quiet_s)


def tell_skipped(reader: JsonlTail | KafkaTail) -> None:
    """Say what was no alert event."""
    if reader.skipped:
        error_line(f"{reader.skipped} entries are no alert events and were skipped", "note: ")


def open_store(path: Path | None, *, must_exist: bool = True) -> TriageStore:
    """The triage store.

    Raises:
        InputDataError: it is not there, or is none.
    """
    from nae_monitor.alert.triage import TriageStore, default_store
    from nae_monitor.errors import InputDataError

    path = path or default_store()
    if must_exist and not path.exists():
        raise InputDataError(f"{path}: is not there; make it with `nae-monitor alerts import`")
    return TriageStore(path)


def _refuse_silent_broker(bootstrap: str, topic: str) -> None:
    """Raise ConfigurationError where nobody answers: it would look like a topic without alerts."""
    from nae_monitor.alert import kafka_address
    from nae_monitor.cli.network import unreachable_brokers
    from nae_monitor.errors import ConfigurationError, Mark, Problem
    from nae_monitor.sink_settings import KafkaSettings

    where = Mark("--kafka")
    problems = kafka_address.check(KafkaSettings(bootstrap, topic), where)
    if not problems and (why := unreachable_brokers(kafka_address.servers(bootstrap))):
        problems = [Problem(where, why, "start the broker, or name another")]
    if problems:
        raise ConfigurationError(problems)
