"""JSON over HTTP with retries under one deadline; bodies are bounded and never quoted in errors."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

import urllib3

from nae_monitor.errors import EngineError

T = TypeVar("T")
MAX_RESPONSE_BYTES = 8 * 1024 * 1024
MAX_CONNECTIONS = 16
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0


class JsonServer:
    """One server. Thread-safe.

    Args:
        base_url: scheme, host, port and optional path prefix.
    """

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._pool = urllib3.PoolManager(maxsize=MAX_CONNECTIONS, block=True, retries=False)

    def call(
        self, method: str, path: str, payload: Mapping[str, Any] | None, *, deadline_s: float
    ) -> Any:
        """Send one request, again and again until it answers or the deadline passes.

        Args:
            method: HTTP method.
            path: below the base URL.
            payload: JSON body, or None.
            deadline_s: on the monotonic clock, retries and pauses included.

        Returns:
            The parsed JSON of a 200 response; None for 404, so that a caller can probe.

        Raises:
            EngineError: refused, answered with garbage, or not answered in time.
        """
        body = None if payload is None else json.dumps(payload).encode()
        pause_s = FIRST_PAUSE_S
        reason = "no answer"
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                status, content = self._once(method, path, body, left_s, deadline_s)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                reason = type(error).__name__
            else:
                if status == 200:
                    return self._parse(content)
                if status == 404:
                    return None
                reason = f"status {status}"
                if status not in RETRIED_STATUS:
                    raise EngineError(f"{self._base_url}{path} refused the request: {reason}")
            time.sleep(max(0.0, min(pause_s, deadline_s - time.monotonic())))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise EngineError(f"{self._base_url}{path} did not answer in time; last: {reason}")

    def _once(
        self, method: str, path: str, body: bytes | None, left_s: float, deadline_s: float
    ) -> tuple[int, bytes]:
        response = self._pool.request(
            method,
            self._base_url + path,
            body=body,
            headers={"Content-Type": "application/json"},
            timeout=urllib3.Timeout(connect=left_s, read=left_s),
            redirect=False,
            preload_content=False,
        )
        try:
            return response.status, _read(response, deadline_s)
        finally:
            response.close()  # an unread rest must not be taken for the next answer

    def _parse(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise EngineError(f"{self._base_url} answered with something else than JSON") from error


def _read(response: urllib3.BaseHTTPResponse, deadline_s: float) -> bytes:
    """The whole body, bounded in size and in time (a server may send a byte now and then)."""
    parts: list[bytes] = []
    size = 0
    while chunk := response.read1(65_536):
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_RESPONSE_BYTES:
            raise EngineError(f"the answer is larger than {MAX_RESPONSE_BYTES} bytes")
        if time.monotonic() > deadline_s:
            raise urllib3.exceptions.TimeoutError("body")
    return b"".join(parts)


def in_parallel(work: Callable[[int], T], count: int) -> list[T]:
    """Run ``work(0..count-1)`` on threads; results in order, the first error raised.

    The threads are daemons: an interpreter that ends waits for those of a pool, and with them a
    host would wait for a server that does not answer.
    """
    futures: list[Future[T]] = [Future() for _ in range(count)]
    waiting = deque(enumerate(futures))

    def run() -> None:
        with contextlib.suppress(IndexError):
            while True:
                index, future = waiting.popleft()
                try:
                    future.set_result(work(index))
                except Exception as error:  # noqa: BLE001 - raised where the result is asked for
                    future.set_exception(error)

    threads = [Thread(target=run, daemon=True) for _ in range(min(count, MAX_CONNECTIONS))]
    for thread in threads:
        thread.start()
    try:
        return [future.result() for future in futures]
    finally:
        waiting.clear()
        for thread in threads:
            thread.join()


def pick(answer: Any, path: Sequence[str | int], kind: type[T]) -> T:
    """A value inside parsed JSON, of the expected type.

    Raises:
        EngineError: the answer has another shape.
    """
    value = answer
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError) as error:
            raise _shape(path) from error
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _shape(path)
    return value


def _shape(path: Sequence[str | int]) -> EngineError:
    return EngineError(f"the engine's answer lacks {'.'.join(map(str, path))}")
