"""Where the decode side runs when it is not the serving process."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from platformdirs import user_runtime_path

from nae_monitor.sink_settings import KafkaSaslSettings, KafkaSettings, KafkaTlsSettings

MAX_SOCKET_PATH_BYTES = 100  # Linux takes 107, and ZeroMQ needs a few


@dataclass(frozen=True, slots=True)
class IpcSettings:
    """Workers on the same host, over ZeroMQ.

    Each endpoint is one worker's: ``ipc:///absolute/path`` in a directory that only its user may
    enter, or ``tcp://127.0.0.1:PORT``, where any user of the host may connect.
    """

    endpoints: tuple[str, ...] = ()  # none: one in the user's runtime directory
    liveness_s: float = 5.0  # a worker, or a serving process, silent for this long is gone
    connect_s: float = 5.0  # how long a start waits for a first worker
    high_water_frames: int = 256  # in ZeroMQ's own queues; queue_bytes bounds what waits before

    def __post_init__(self) -> None:
        faults = [f"{one}: {why}" for one in self.endpoints if (why := _fault(one))]
        if faults:
            raise ValueError("; ".join(faults))
        if len(set(self.endpoints)) != len(self.endpoints):
            raise ValueError("an endpoint is named twice")
        if self.liveness_s < 0.5 or self.connect_s < 0 or self.high_water_frames < 8:
            raise ValueError(
                "liveness_s is at least 0.5, connect_s not negative, high_water_frames at least 8"
            )

    @property
    def addresses(self) -> tuple[str, ...]:
        """The endpoints, or the one that stands for none."""
        return self.endpoints or (f"ipc://{user_runtime_path('nae-monitor')}/worker-0.sock",)


@dataclass(frozen=True, slots=True)
class ActivationsSettings:
    """The Kafka topic that activations take from serving processes to a group of workers."""

    bootstrap: str = "127.0.0.1:9092"
    topic: str = "nae.activations"
    group: str = "nae-monitor"
    max_message_bytes: int = 900_000  # a frame; brokers take 1 MiB unless told otherwise
    in_flight_frames: int = 256  # sent and not acknowledged yet
    session_s: float = 10.0  # a worker silent for this long leaves the group
    tls: KafkaTlsSettings | None = None  # as for the kafka sink of alerts
    sasl: KafkaSaslSettings | None = None

    def __post_init__(self) -> None:
        if not (self.bootstrap and self.topic and self.group):
            raise ValueError("bootstrap, topic and group are not empty")
        if self.max_message_bytes < 65_536 or self.in_flight_frames < 1 or self.session_s < 1:
            raise ValueError(
                "max_message_bytes is at least 65536, in_flight_frames and session_s at least 1"
            )

    @property
    def connection(self) -> KafkaSettings:
        """Brokers, topic and security, as clients of Kafka are made from them."""
        return KafkaSettings(self.bootstrap, self.topic, tls=self.tls, sasl=self.sasl)


def socket_path(endpoint: str) -> Path | None:
    """The file of an ``ipc://`` endpoint; None for another."""
    return Path(endpoint.removeprefix("ipc://")) if endpoint.startswith("ipc://") else None


def _fault(endpoint: str) -> str:
    path = socket_path(endpoint)
    if path is not None:
        if not path.is_absolute():
            return "is not an absolute path"
        too_long = len(str(path).encode()) > MAX_SOCKET_PATH_BYTES
        return f"is longer than {MAX_SOCKET_PATH_BYTES} bytes" if too_long else ""
    url = urlsplit(endpoint)
    try:
        is_loopback = ip_address(url.hostname or "").is_loopback and url.port is not None
    except ValueError:
        is_loopback = False
    return "" if url.scheme == "tcp" and is_loopback else "use ipc:///path or tcp://127.0.0.1:PORT"
