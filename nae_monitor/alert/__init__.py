"""Alerts: findings folded into alerts, and the sinks that carry them out of the process."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console

from nae_monitor.alert import jsonl, kafka_address, kafka_probe, otel, webhook
from nae_monitor.alert.audience import EVERYONE, Audience, audience_of
from nae_monitor.alert.console import ConsoleSink
from nae_monitor.alert.fold import AlertFolder
from nae_monitor.alert.jsonl import JsonlSink
from nae_monitor.alert.kafka import KafkaSink
from nae_monitor.alert.kafka_security import problems_of_security
from nae_monitor.alert.otel import OtelSink
from nae_monitor.alert.otlp import OtlpSink
from nae_monitor.alert.outbox_place import Relayed, outbox_path
from nae_monitor.alert.privacy import ContentPolicy
from nae_monitor.alert.sink import Sink
from nae_monitor.alert.tail import JsonlTail, KafkaTail, ReadAlert, consume_kafka
from nae_monitor.alert.webhook import WebhookSink
from nae_monitor.alert.window import AlertWindow
from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.health import Health
from nae_monitor.records import Alert, Severity, StopOutcome
from nae_monitor.settings import PrivacySettings
from nae_monitor.sink_settings import (
    AlertSettings,
    JsonlSettings,
    KafkaSettings,
    OtelSettings,
    SinkSettings,
    WebhookSettings,
)

__all__ = [
    "AlertFolder",
    "AlertWindow",
    "ContentPolicy",
    "JsonlTail",
    "KafkaTail",
    "ReadAlert",
    "Sink",
    "Sinks",
    "build_sinks",
    "consume_kafka",
]

GRACE_S = 0.25  # for the last step of a sink that used its whole deadline


class Sinks:
    """Every alert to every sink, each guarded by itself; itself a :class:`Sink` but for stats."""

    def __init__(
        self,
        sinks: Mapping[str, Sink],
        health: Health,
        audiences: Mapping[str, Audience] | None = None,
        least: Mapping[str, Severity] | None = None,
    ) -> None:
        """``audiences``: by sink, whose alerts it takes; a sink without takes all.

        ``least``: by sink, the lowest severity it takes; a sink without takes all.
        """
        self._sinks = dict(sinks)
        self._audiences = audiences or {}
        self._least = least or {}
        self._health = health

    def emit(self, alert: Alert) -> None:
        """Hand the alert to each sink; a failing one is counted and never stops another.

        A sink whose ``emit`` raised five times in a row is off, by the rule of :class:`Health`.
        A stop that was ordered is told to every sink that the alert is meant for, whatever its
        severity: somebody's answer was cut off, or was to be. Otherwise what is below a sink's
        least severity is counted as ``alert.SINK.below_severity``,
        and as ``alerts.below_severity`` where for that reason no sink takes it at all.
        """
        meant = [name for name in self._sinks if self._is_meant_for(name, alert)]
        takers = [name for name in meant if self._is_grave_enough(name, alert)]
        for name in meant:
            if name not in takers:
                self._health.count(f"alert.{name}.below_severity")
        if meant and not takers:
            self._health.count("alerts.below_severity")
        for name in takers:
            sink = self._sinks[name]
            if self._health.is_open(f"alert.{name}"):
                self._health.count(f"alert.{name}.dropped.circuit_open")
                continue
            with self._health.guard(f"alert.{name}"):
                sink.emit(alert)

    def takes(self, alert: Alert) -> bool:
        """Whether a sink is meant for the alert and it is grave enough for that one."""
        return any(
            self._is_meant_for(name, alert) and self._is_grave_enough(name, alert)
            for name in self._sinks
        )

    def _is_meant_for(self, name: str, alert: Alert) -> bool:
        return self._audiences.get(name, EVERYONE).includes(alert)

    def _is_grave_enough(self, name: str, alert: Alert) -> bool:
        if alert.stop not in (None, StopOutcome.WOULD_BLOCK):
            return True
        return name not in self._least or alert.severity.rank >= self._least[name].rank

    def close(self, deadline_s: float) -> bool:
        """Close all at once, each with the whole deadline; True if all delivered everything."""
        delivered: dict[str, bool] = {}

        def close(name: str, sink: Sink) -> None:
            with self._health.guard(f"alert.{name}.close"):
                delivered[name] = sink.close(deadline_s)

        threads = [
            threading.Thread(target=close, args=item, name=f"nae-close-{item[0]}", daemon=True)
            for item in self._sinks.items()
        ]
        end_s = time.monotonic() + deadline_s + GRACE_S
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        return all(delivered.get(name, False) for name in self._sinks)

    def stats(self) -> Mapping[str, Mapping[str, int]]:
        """Each sink's counts, by its name."""
        found: dict[str, Mapping[str, int]] = {}
        for name, sink in self._sinks.items():
            with self._health.guard(f"alert.{name}.stats"):
                found[name] = sink.stats()
        return found


def build_sinks(
    settings: AlertSettings,
    privacy: PrivacySettings,
    health: Health,
    *,
    console: Console | None = None,
) -> Sinks:
    """Build every configured sink. A broker or collector that is away does not stop a start.

    Args:
        settings: which sinks.
        privacy: what content they may carry.
        health: where they count.
        console: the console to print on, where a live display owns the terminal.

    Raises:
        ConfigurationError: every sink that can never work, all at once: an unwritable file, an
            impossible address, a missing optional package.
    """
    policy = ContentPolicy(privacy)
    problems: list[Problem] = []
    sinks: dict[str, Sink] = {}
    named = _named(settings)
    shared = _shared_outboxes(named.values())
    for name, (where, one) in named.items():
        found = [*_check(one, where), *shared.get(where, ())]
        problems += found
        if not found:
            try:
                sinks[name] = _build(one, policy, health, name, console)
            except (OSError, sqlite3.Error) as error:
                mend = "name an SQLite file in a directory this user may write"
                problems.append(Problem(where, f"the outbox cannot be opened: {error}", mend))
    problems += _none_takes_all(settings)
    audiences = {name: audience_of(one.options) for name, (_, one) in named.items()}
    least = {name: _least_of(one, settings) for name, (_, one) in named.items()}
    built = Sinks(sinks, health, audiences, least)
    if problems:
        built.close(1.0)
        raise ConfigurationError(problems)
    for sink in sinks.values():
        if isinstance(sink, OtelSink | OtlpSink):
            sink.observe(built.stats)
    return built


def _named(settings: AlertSettings) -> dict[str, tuple[Mark, SinkSettings]]:
    """Each sink by a name of its own: its kind, and a number from the second of a kind on."""
    numbers: Counter[str] = Counter()
    named: dict[str, tuple[Mark, SinkSettings]] = {}
    for index, one in enumerate(settings.sinks):
        numbers[one.kind] += 1
        name = one.kind if numbers[one.kind] == 1 else f"{one.kind}#{numbers[one.kind]}"
        named[name] = Mark(f"alert.sinks[{index}].{one.kind}"), one
    return named


def _least_of(one: SinkSettings, settings: AlertSettings) -> Severity:
    own = one.options.min_severity if one.options is not None else None
    return Severity(own or settings.min_severity)


def _none_takes_all(settings: AlertSettings) -> list[Problem]:
    """Alerts of other routes, and the monitor's own, which name none, must reach somebody."""
    if not settings.sinks or any(audience_of(one.options).is_everyone for one in settings.sinks):
        return []
    mend = "leave `routes`, `tags` and `tenants` out of one sink, or add console"
    message = "every sink takes certain routes only, or certain tags or tenants"
    return [Problem(Mark("alert.sinks"), message, mend)]


def _shared_outboxes(named: Iterable[tuple[Mark, SinkSettings]]) -> dict[Mark, list[Problem]]:
    """Sinks that name one file: at a restart the one would take over what the other left."""
    first: dict[Path, Mark] = {}
    problems: dict[Mark, list[Problem]] = {}
    for where, one in named:
        if isinstance(one.options, Relayed) and one.options.outbox is not None:
            other = first.setdefault(outbox_path(one.options).resolve(), where)
            if other is not where:
                message = f"the outbox is that of {other.file}"
                problems[where] = [Problem(where, message, "name a file of its own")]
    return problems


def _check(one: SinkSettings, where: Mark) -> list[Problem]:
    match one.options:
        case JsonlSettings():
            return jsonl.check(one.options, where)
        case OtelSettings():
            return otel.check(one.options, where)
        case KafkaSettings():
            return (
                kafka_address.check(one.options, where)
                or problems_of_security(one.options, where)
                or kafka_probe.problems_of(one.options, where)
            )
        case WebhookSettings():
            return webhook.check(one.options, where)
    if one.kind == "otel":
        return otel.check(OtelSettings(), where)
    if one.kind in ("jsonl", "kafka", "webhook"):
        return [Problem(where, f"the {one.kind} sink has no options", "see the documentation")]
    return []


def _build(
    one: SinkSettings,
    policy: ContentPolicy,
    health: Health,
    name: str,
    console: Console | None,
) -> Sink:
    match one.options:
        case JsonlSettings():
            return JsonlSink(one.options, policy, health, name)
        case KafkaSettings():
            return KafkaSink(one.options, policy, health, name=name)
        case OtelSettings(endpoint=str()):
            return OtlpSink(one.options, policy, health, name=name)
        case OtelSettings():
            return OtelSink(one.options, policy, health, name=name)
        case WebhookSettings():
            return WebhookSink(one.options, policy, health, name)
    if one.kind == "otel":
        return OtelSink(OtelSettings(), policy, health, name=name)
    return ConsoleSink(policy, health, console=console, name=name)
