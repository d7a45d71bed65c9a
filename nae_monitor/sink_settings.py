"""Where alerts go: the options of each kind of sink, and which alerts they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

SinkKind = Literal["console", "jsonl", "otel", "kafka", "webhook"]
SeverityName = Literal["informational", "low", "medium", "high", "critical"]


@dataclass(frozen=True, slots=True)
class ConsoleSettings:
    """Alerts on standard error."""

    routes: tuple[str, ...] = ()  # only alerts that name one of these; empty: all
    min_severity: SeverityName | None = None  # None: that of ``alert``
    tags: tuple[str, ...] = ()  # only alerts with one of these tags; empty: all
    tenants: tuple[str, ...] = ()  # only alerts of these tenants; empty: all


@dataclass(frozen=True, slots=True)
class JsonlSettings:
    """Append-only alert file."""

    path: str
    fsync: Literal["never", "interval", "always"] = "interval"
    rotate_bytes: int = 64 * 1024 * 1024
    rotate_age_s: float | None = None  # also when the file's first alert is older; None: never
    keep_files: int = 5  # rotated ones, path.1 the newest
    queue_events: int = 10_000  # kept in memory while the file cannot be written
    routes: tuple[str, ...] = ()  # as for console
    min_severity: SeverityName | None = None
    tags: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.path or min(self.rotate_bytes, self.keep_files, self.queue_events) < 1:
            raise ValueError("path is empty, or rotate_bytes, keep_files, queue_events below 1")
        if self.rotate_age_s is not None and not self.rotate_age_s >= 1:
            raise ValueError("rotate_age_s is at least 1; leave it out to rotate by size only")


@dataclass(frozen=True, slots=True)
class OtelSettings:
    """OpenTelemetry: the host's provider, or one of our own where ``endpoint`` is given.

    With an endpoint alerts wait in an outbox until the collector took them. The host's provider
    is given them at once, and they are the host's from then on.
    """

    endpoint: str | None = None  # OTLP gRPC, e.g. http://127.0.0.1:4317
    guardrail_names: bool = False  # also write the unmerged gen_ai.guardrail.* attributes
    outbox: str | None = None  # with an endpoint: SQLite file; None: under the state directory
    outbox_bytes: int = 64 * 1024 * 1024  # when full, the lowest severity goes first
    routes: tuple[str, ...] = ()  # as for console
    min_severity: SeverityName | None = None
    tags: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.endpoint is None and self.outbox is not None:
            raise ValueError("outbox needs an endpoint: without one spans are the host's")
        if self.outbox_bytes < 4096:
            raise ValueError("outbox_bytes is at least 4096")


@dataclass(frozen=True, slots=True)
class KafkaTlsSettings:
    """TLS to the brokers; ``tls: {}`` takes the system's certificate authorities."""

    ca_file: str | None = None  # PEM; None: the system's
    cert_file: str | None = None  # PEM, with key_file: a certificate of this client
    key_file: str | None = None
    key_password_env: str | None = None  # the environment variable, never the password
    check_hostname: bool = True

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")


@dataclass(frozen=True, slots=True)
class KafkaSaslSettings:
    """Who this client is to the brokers: the names of environment variables, never secrets."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
    username_env: str = "NAE_MONITOR_KAFKA_USERNAME"
    password_env: str = "NAE_MONITOR_KAFKA_PASSWORD"  # noqa: S105 - the variable's name


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Alerts as CloudEvents on a Kafka topic."""

    bootstrap: str
    topic: str = "nae.alerts"
    # Topics of certain routes; an alert goes to the topic of each of its routes, and to `topic`
    # for a route without one of its own, or without a route.
    topics: Mapping[str, str] = field(default_factory=dict)
    routes: tuple[str, ...] = ()  # as for console
    min_severity: SeverityName | None = None
    tags: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    queue_events: int = 10_000
    outbox: str | None = None  # SQLite file; None: a file under the state directory
    outbox_bytes: int = 256 * 1024 * 1024  # when full, the lowest severity goes first
    # Of events that no broker takes (too large, invalid), each with why; None: they are only kept
    # in the outbox, for `nae-monitor alerts resend`.
    dead_letter_topic: str | None = None
    heartbeat_s: float = 60.0  # between heartbeats on `topic`; 0: none
    tls: KafkaTlsSettings | None = None
    sasl: KafkaSaslSettings | None = None

    def __post_init__(self) -> None:
        if self.queue_events < 1 or self.outbox_bytes < 4096:
            raise ValueError("queue_events is at least 1, outbox_bytes at least 4096")
        if not 0 <= self.heartbeat_s <= 86_400:
            raise ValueError("heartbeat_s is 0 to 86400")
        if self.dead_letter_topic in (self.topic, *self.topics.values()):
            raise ValueError("dead_letter_topic must be no topic that alerts go to")


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """Alerts posted to a URL, one a request; content follows the privacy setting."""

    url: str | None = None  # https, or http on the loopback interface
    # The environment variable with the URL, for one that is itself a secret (Slack's are).
    url_env: str | None = None
    format: Literal["json", "slack"] = "json"
    # The environment variable with the secret that signs `json` bodies; null: they go unsigned.
    secret_env: str | None = "NAE_MONITOR_WEBHOOK_SECRET"  # noqa: S105 - the variable's name
    ca_file: str | None = None  # PEM; None: the system's
    timeout_s: float = 10.0  # of one request
    queue_events: int = 1000
    outbox: str | None = None  # SQLite file; None: a file under the state directory
    outbox_bytes: int = 64 * 1024 * 1024  # when full, the lowest severity goes first
    routes: tuple[str, ...] = ()  # as for console
    min_severity: SeverityName | None = None
    tags: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.url is None) == (self.url_env is None):
            raise ValueError("give either url or url_env")
        if self.queue_events < 1 or not 0 < self.timeout_s <= 300:
            raise ValueError("queue_events is at least 1, timeout_s above 0 and at most 300")
        if self.outbox_bytes < 4096:
            raise ValueError("outbox_bytes is at least 4096")


SinkOptions = ConsoleSettings | JsonlSettings | OtelSettings | KafkaSettings | WebhookSettings


@dataclass(frozen=True, slots=True)
class SinkSettings:
    """One sink by kind; ``options`` is the settings record of that kind."""

    kind: SinkKind
    options: SinkOptions | None = None


@dataclass(frozen=True, slots=True)
class TriageSettings:
    """What `nae-monitor alerts import` keeps in the triage store."""

    max_alerts: int = 100_000  # beyond it the oldest that nobody labelled go first
    max_age_days: float | None = None  # by the time of the alert, labelled or not; None: any age

    def __post_init__(self) -> None:
        if self.max_alerts < 1:
            raise ValueError("max_alerts is at least 1")
        if self.max_age_days is not None and not 0 < self.max_age_days <= 36_500:
            raise ValueError("max_age_days is above 0 and at most 36500")


@dataclass(frozen=True, slots=True)
class AlertSettings:
    """Where alerts go."""

    sinks: tuple[SinkSettings, ...] = (SinkSettings("console"),)
    # Of alerts that leave, for sinks that set none of their own. Informational matches say what
    # went on, not that it was wrong: they stand in verdicts, recordings and reports.
    min_severity: SeverityName = "low"
    triage: TriageSettings = field(default_factory=TriageSettings)
