"""Where ``alerts`` commands read from: a file, a topic, or the triage store."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nae_monitor.cli.terminal import error_line
from nae_monitor.errors import Mark

if TYPE_CHECKING:
    from nae_monitor.alert import JsonlTail, KafkaTail
    from nae_monitor.alert.triage import TriageStore
    from nae_monitor.sink_settings import KafkaSettings, TriageSettings

KAFKA_QUIET_S = 5.0
KafkaOption = Annotated[
    str | None, typer.Option("--kafka", metavar="HOST:PORT", help="Brokers of the kafka sink.")
]
TOPIC = "nae.alerts"
TopicOption = Annotated[
    str | None, typer.Option(help=f"The topic. Without: the configuration's, or {TOPIC}.")
]
ReadConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="Read from the kafka sink of this YAML, with its TLS and SASL."
    ),
]
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
    topic: str | None,
    group: str | None = None,
    follow: bool = False,
    config: Path | None = None,
) -> JsonlTail | KafkaTail:
    """The one source that was named: a file, or brokers, perhaps as a configuration has them."""
    from nae_monitor.alert import JsonlTail, KafkaTail
    from nae_monitor.alert.kafka_security import security

    if (file is None) == (kafka is None and config is None):
        raise typer.BadParameter("name either a file, or --kafka HOST:PORT, or --config FILE")
    if file is not None:
        return JsonlTail(file, follow=follow)
    settings = _kafka_settings(kafka, topic, config)
    _refuse_silent_broker(settings, Mark("--kafka" if config is None else str(config)))
    quiet_s = math.inf if follow else KAFKA_QUIET_S
    return KafkaTail(
        settings.bootstrap,
        settings.topic,
        group=group,
        timeout_s=quiet_s,
        client=security(settings),
    )


def _kafka_settings(kafka: str | None, topic: str | None, config: Path | None) -> KafkaSettings:
    """Brokers and topic as they were given, and what the configuration says of TLS and SASL."""
    from nae_monitor.settings import Settings
    from nae_monitor.sink_settings import KafkaSettings

    if config is None:
        return KafkaSettings(kafka or "", topic or TOPIC)
    options = (sink.options for sink in Settings.from_yaml(config).alert.sinks)
    sinks = [one for one in options if isinstance(one, KafkaSettings)]
    meant = [one for one in sinks if one.bootstrap == kafka or one.topic == topic]
    if len(sinks) != 1 and len(meant) != 1:
        how = "name one by --topic or --kafka" if sinks else "there is nothing to read"
        raise typer.BadParameter(f"{config} has {len(sinks)} kafka sinks: {how}")
    sink = sinks[0] if len(sinks) == 1 else meant[0]
    return KafkaSettings(kafka or sink.bootstrap, topic or sink.topic, tls=sink.tls, sasl=sink.sasl)


def tell_skipped(reader: JsonlTail | KafkaTail) -> None:
    """Say what was no alert event."""
    if reader.skipped:
        error_line(f"{reader.skipped} entries are no alert events and were skipped", "note: ")


def open_store(
    path: Path | None, *, must_exist: bool = True, bounds: TriageSettings | None = None
) -> TriageStore:
    """The triage store.

    Raises:
        InputDataError: it is not there, or is none.
    """
    from nae_monitor.alert.triage import TriageStore, default_store
    from nae_monitor.errors import InputDataError

    path = path or default_store()
    if must_exist and not path.exists():
        raise InputDataError(f"{path}: is not there; make it with `nae-monitor alerts import`")
    return TriageStore(path, bounds)


def _refuse_silent_broker(settings: KafkaSettings, where: Mark) -> None:
    """Raise ConfigurationError where nobody answers: it would look like a topic without alerts."""
    from nae_monitor.alert import kafka_address, kafka_probe
    from nae_monitor.alert.kafka_security import problems_of_security
    from nae_monitor.cli.network import unreachable_brokers
    from nae_monitor.errors import ConfigurationError, Problem

    problems = kafka_address.check(settings, where) or problems_of_security(settings, where)
    if not problems and (why := unreachable_brokers(kafka_address.servers(settings.bootstrap))):
        problems = [Problem(where, why, "start the broker, or name another")]
    if not problems and (settings.tls or settings.sasl):
        problems = kafka_probe.problems_of(settings, where)
    if problems:
        raise ConfigurationError(problems)
