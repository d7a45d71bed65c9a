"""The alert sinks: what can never work is a fault, who is away is a warning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from nae_monitor.alert import jsonl, kafka_address, otel
from nae_monitor.cli.checks.check import Check, problem_check
from nae_monitor.cli.network import unreachable, unreachable_brokers
from nae_monitor.errors import Mark
from nae_monitor.settings import JsonlSettings, KafkaSettings, OtelSettings, Settings, SinkSettings


def sinks(settings: Settings) -> Iterator[Check]:
    """Each configured sink."""
    for index, sink in enumerate(settings.alert.sinks):
        yield from _sink(sink, Mark(f"alert.sinks[{index}].{sink.kind}"))


def _sink(sink: SinkSettings, where: Mark) -> list[Check]:
    name = f"sink {sink.kind}"
    match sink.options:
        case JsonlSettings():
            return _jsonl(sink.options, name, where)
        case KafkaSettings():
            return _kafka(sink.options, name, where)
        case OtelSettings():
            return _otel(sink.options, name, where)
    return [Check(name, "ok", "standard error" if sink.kind == "console" else "host's provider")]


def _jsonl(options: JsonlSettings, name: str, where: Mark) -> list[Check]:
    path = Path(options.path).expanduser()
    existed = path.exists()
    problems = jsonl.check(options, where)
    if not existed and path.is_file() and not path.stat().st_size:
        path.unlink()  # a check leaves nothing behind
    return [problem_check(name, p) for p in problems] or [Check(name, "ok", f"{path} is writable")]


def _kafka(options: KafkaSettings, name: str, where: Mark) -> list[Check]:
    problems = kafka_address.check(options, where)
    if problems:
        return [problem_check(name, p) for p in problems]
    why = unreachable_brokers(kafka_address.servers(options.bootstrap))
    if why:
        mend = "start a broker; until then alerts wait in the outbox"
        return [Check(name, "warning", why, mend)]
    return [Check(name, "ok", f"{options.bootstrap} answers, topic {options.topic}")]


def _otel(options: OtelSettings, name: str, where: Mark) -> list[Check]:
    problems = otel.check(options, where)
    if problems:
        return [problem_check(name, p) for p in problems]
    if options.endpoint is None:
        return [Check(name, "ok", "the host's provider")]
    url = urlsplit(options.endpoint)
    why = unreachable(url.hostname or "", url.port or 4317)
    if why:
        return [Check(name, "warning", why, "start the collector; spans are lost until then")]
    return [Check(name, "ok", f"{options.endpoint} answers")]
