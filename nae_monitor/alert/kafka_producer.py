"""The producer of kafka-python as the sink wants it.

Its settings are not taste. An idempotent producer of kafka-python 3.0.12 stalls for ever after a
batch expired or a broker lost its state; a first send waits for metadata, one topic at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kafka import KafkaProducer

from nae_monitor.alert.kafka_address import servers
from nae_monitor.alert.kafka_security import security
from nae_monitor.sink_settings import KafkaSettings

API_VERSION = (2, 6)  # pinned: finding it out blocks 30 s where no broker answers
MAX_BLOCK_MS = 200
BATCH_BYTES = 256 * 1024  # with one request in flight, what bounds the rate


def connect(settings: KafkaSettings, topics: Iterable[str], delivery_timeout_s: float) -> Any:
    """A producer that asks for the metadata of all topics at once.

    So the first send waits for all of them together, at most ``MAX_BLOCK_MS``, and not each
    topic's first send for its own.

    Raises:
        OSError: a certificate or key cannot be read.
    """
    producer = KafkaProducer(
        **security(settings),
        bootstrap_servers=servers(settings.bootstrap),
        client_id="nae-monitor",
        api_version=API_VERSION,
        max_block_ms=MAX_BLOCK_MS,
        acks="all",
        enable_idempotence=False,
        max_in_flight_requests_per_connection=1,
        batch_size=BATCH_BYTES,
        delivery_timeout_ms=int(delivery_timeout_s * 1000),
        request_timeout_ms=int(delivery_timeout_s * 500),
        reconnect_backoff_max_ms=1000,
        metrics_enabled=False,
    )
    for topic in topics:
        producer._sender.add_topic(topic)
    return producer


def unknown_topics(producer: Any, topics: Iterable[str]) -> list[str]:
    """Those of which the producer has no metadata now; never waits."""
    return [topic for topic in topics if producer._metadata.partitions_for_topic(topic) is None]


def discard(producer: Any, timeout_s: float) -> str:
    """Close a producer; the kind of failure where that failed, else "". Never raises."""
    try:
        producer.close(timeout=timeout_s)
    except Exception as error:  # noqa: BLE001 - close of kafka-python can raise anything
        # It then leaves its network thread running, which would go on sending.
        producer._sender.force_close()
        return type(error).__name__
    return ""
