"""The endpoint that a worker listens on, which no other may take from it."""

from __future__ import annotations

import zmq
from filelock import FileLock, Timeout

from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.placement.frame import MAX_FRAME_BYTES
from nae_monitor.placement.private import make_private
from nae_monitor.placement_settings import socket_path


def claim(endpoint: str) -> FileLock | None:
    """The right to an endpoint's file: ZeroMQ would take it from a worker that lives.

    Raises:
        ConfigurationError: another worker has it, or its directory is not private.
    """
    path = socket_path(endpoint)
    if path is None:
        return None
    make_private(path.parent)
    lock = FileLock(f"{path}.lock", timeout=0, mode=0o600, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise _in_use(endpoint, "another worker listens there") from error
    return lock


def bound(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, high_water_frames: int
) -> zmq.Socket[bytes]:
    """A socket that listens there and bounds what it takes; the context ends where it cannot.

    Raises:
        ConfigurationError: the endpoint is in use.
    """
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.RCVHWM, high_water_frames)
    socket.setsockopt(zmq.SNDHWM, high_water_frames)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close(0)
        context.term()
        raise _in_use(endpoint, str(error)) from error
    return socket


def _in_use(endpoint: str, why: str) -> ConfigurationError:
    mend = "name an endpoint a worker in ipc.endpoints, and start each with its --number"
    return ConfigurationError([Problem(Mark(f"ipc {endpoint}"), why, mend)])
