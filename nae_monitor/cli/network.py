"""Whether something listens at an address."""

from __future__ import annotations

import socket
from collections.abc import Sequence

CONNECT_LIMIT_S = 2.0


def unreachable(host: str, port: int) -> str:
    """Why no TCP connection can be made; empty if one was."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_LIMIT_S).close()
    except OSError as error:
        return f"{host}:{port} does not answer ({error.strerror or type(error).__name__})"
    return ""


def unreachable_brokers(servers: Sequence[str]) -> str:
    """Why none of several HOST:PORT answers; empty if one does."""
    reasons = []
    for server in servers:
        host, _, port = server.rpartition(":")
        reasons.append(unreachable(host.strip("[]"), int(port)))
    return "" if "" in reasons else "; ".join(reasons)
