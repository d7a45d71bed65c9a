"""Where a Kafka sink sends to and where it keeps what is not sent, as configured."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import platformdirs

from nae_monitor.errors import Mark, Problem
from nae_monitor.sink_settings import KafkaSettings

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_SERVER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


def check(settings: KafkaSettings, where: Mark) -> list[Problem]:
    """What can be known to be wrong without asking the network."""
    problems = []
    for server in settings.bootstrap.split(","):
        found = _SERVER.fullmatch(server.strip())
        if found is None or not 0 < int(found[2]) < 65536:
            message = f"bootstrap has {server.strip()!r}, which is no HOST:PORT"
            problems.append(Problem(where, message, "write HOST:PORT[,HOST:PORT…]"))
    for topic in dict.fromkeys(
        (settings.topic, *settings.topics.values(), settings.dead_letter_topic or settings.topic)
    ):
        if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
            mend = "1 to 249 of letters, digits, dot, underscore and hyphen"
            problems.append(Problem(where, f"topic {topic!r} is no topic name", mend))
    return problems


def servers(bootstrap: str) -> list[str]:
    """The broker addresses of a bootstrap string."""
    return [server.strip() for server in bootstrap.split(",")]


def outbox_path(settings: KafkaSettings) -> Path:
    """The outbox's file: the configured one, or one for these brokers and topic."""
    if settings.outbox is not None:
        return Path(settings.outbox).expanduser()
    brokers = hashlib.sha256(settings.bootstrap.encode()).hexdigest()[:12]
    state = platformdirs.user_state_path("nae-monitor")
    return state / "outbox" / f"{settings.topic}-{brokers}.sqlite"
