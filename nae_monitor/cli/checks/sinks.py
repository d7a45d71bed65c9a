"""The alert sinks: what can never work is a fault, who is away is a warning."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from nae_monitor.alert import jsonl, kafka_address, kafka_probe, otel, resend, webhook
from nae_monitor.alert.kafka_security import problems_of_security
from nae_monitor.alert.outbox_place import Relayed, outbox_path
from nae_monitor.cli.checks.check import Check, problem_check
from nae_monitor.cli.network import unreachable, unreachable_brokers
from nae_monitor.errors import Mark
from nae_monitor.settings import Settings
from nae_monitor.sink_settings import (
    JsonlSettings,
    KafkaSettings,
    OtelSettings,
    SinkSettings,
    WebhookSettings,
)


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
        case WebhookSettings():
            return _webhook(sink.options, name, where)
    return [Check(name, "ok", "standard error" if sink.kind == "console" else "host's provider")]


def _jsonl(options: JsonlSettings, name: str, where: Mark) -> list[Check]:
    path = Path(options.path).expanduser()
    existed = path.exists()
    problems = jsonl.check(options, where)
    if not existed and path.is_file() and not path.stat().st_size:
        path.unlink()  # a check leaves nothing behind
    return [problem_check(name, p) for p in problems] or [Check(name, "ok", f"{path} is writable")]


def _kafka(options: KafkaSettings, name: str, where: Mark) -> list[Check]:
    problems = kafka_address.check(options, where) or problems_of_security(options, where)
    if problems:
        return [problem_check(name, p) for p in problems]
    return [*_brokers(options, name, where), *_outbox(options, name)]


def _brokers(options: KafkaSettings, name: str, where: Mark) -> list[Check]:
    why = unreachable_brokers(kafka_address.servers(options.bootstrap))
    if why:
        mend = "start a broker; until then alerts wait in the outbox"
        return [Check(name, "warning", why, mend)]
    problems = kafka_probe.problems_of(options, where)
    if problems:
        return [problem_check(name, p) for p in problems]
    return [Check(name, "ok", f"{options.bootstrap} answers, topic {options.topic}")]


def _outbox(options: Relayed, name: str) -> list[Check]:
    """What waits on disk, what was refused, and damaged files that were moved aside."""
    base, checks = outbox_path(options), []
    for path in resend.files_of(base):
        try:
            checks.append(_outbox_check(resend.state_of(path), f"{name} outbox"))
        except (OSError, sqlite3.Error) as error:
            message = f"{path} cannot be read: {error}"
            mend = "a start moves a damaged file aside and makes a fresh one"
            checks.append(Check(f"{name} outbox", "warning", message, mend))
    for path in resend.moved_aside(base):
        mend = f"nae-monitor alerts resend --from {path}, then remove it"
        checks.append(Check(f"{name} outbox", "warning", f"{path} was damaged", mend))
    return checks


def _outbox_check(state: resend.OutboxState, name: str) -> Check:
    message = f"{state.path}: {state.events} waiting, {state.size_bytes} bytes"
    if state.oldest_age_s is not None:
        message += f", the oldest for {state.oldest_age_s:.0f} s"
    if state.is_in_use:
        message += "; a monitor is running on it"
    if state.rejected:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(state.rejected.items()))
        mend = "mend the cause, then nae-monitor alerts resend"
        return Check(name, "warning", f"{message}; refused: {reasons}", mend)
    if state.events and not state.is_in_use:
        return Check(name, "warning", message, "nae-monitor alerts resend, or start the monitor")
    return Check(name, "ok", message)


def _otel(options: OtelSettings, name: str, where: Mark) -> list[Check]:
    problems = otel.check(options, where)
    if problems:
        return [problem_check(name, p) for p in problems]
    if options.endpoint is None:
        return [Check(name, "ok", "the host's provider")]
    url = urlsplit(options.endpoint)
    why = unreachable(url.hostname or "", url.port or 4317)
    found = Check(name, "ok", f"{options.endpoint} answers")
    if why:
        mend = "start the collector; until then alerts wait in the outbox"
        found = Check(name, "warning", why, mend)
    return [found, *_outbox(options, name)]


def _webhook(options: WebhookSettings, name: str, where: Mark) -> list[Check]:
    problems = webhook.check(options, where)
    if problems:
        return [problem_check(name, p) for p in problems]
    url = urlsplit(webhook.url_of(options, os.environ))
    why = unreachable(url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
    found = Check(name, "ok", f"{url.hostname} answers")
    if why:
        found = Check(name, "warning", why, "alerts wait in the outbox until it answers")
    return [found, *_outbox(options, name)]
