"""Where a sink keeps what is not delivered yet."""

from __future__ import annotations

import hashlib
from pathlib import Path

import platformdirs

from nae_monitor.alert import kafka_address
from nae_monitor.sink_settings import KafkaSettings, OtelSettings, WebhookSettings

Relayed = KafkaSettings | OtelSettings | WebhookSettings


def outbox_path(settings: Relayed) -> Path:
    """The outbox's file: the configured one, or one for this far end in the state directory.

    A webhook whose address is in the environment keeps its file when the address changes.
    """
    if isinstance(settings, KafkaSettings):
        return kafka_address.outbox_path(settings)
    if settings.outbox is not None:
        return Path(settings.outbox).expanduser()
    if isinstance(settings, OtelSettings):
        kind, far_end = "otel", settings.endpoint or ""
    else:
        kind, far_end = "webhook", settings.url or f"${settings.url_env}"
    name = hashlib.sha256(far_end.encode()).hexdigest()[:12]  # an address may be a secret
    return platformdirs.user_state_path("nae-monitor") / "outbox" / f"{kind}-{name}.sqlite"
