"""The sinks that have an outbox, by their settings."""

from __future__ import annotations

from nae_monitor.alert.durable import DurableSink
from nae_monitor.alert.kafka import KafkaSink
from nae_monitor.alert.otlp import OtlpSink
from nae_monitor.alert.outbox_place import Relayed
from nae_monitor.alert.privacy import ContentPolicy
from nae_monitor.alert.webhook import WebhookSink
from nae_monitor.health import Health
from nae_monitor.sink_settings import KafkaSettings, OtelSettings


def open_sink(settings: Relayed, policy: ContentPolicy, health: Health) -> DurableSink:
    """Open a sink's outbox and start sending what lies in it.

    Raises:
        OSError: the outbox cannot be written, or is something else.
        sqlite3.Error: SQLite cannot use it.
    """
    if isinstance(settings, KafkaSettings):
        return KafkaSink(settings, policy, health)
    if isinstance(settings, OtelSettings):
        return OtlpSink(settings, policy, health)
    return WebhookSink(settings, policy, health)
