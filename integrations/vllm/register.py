"""The plugin's entry point. vLLM calls it, unguarded, in every process it starts."""

from __future__ import annotations

import functools
import hashlib
import logging
from typing import Any

from nae_monitor.integrations.engines.switch import configured, refuse

log = logging.getLogger("nae_monitor")

SALT = "nae_monitor-1"  # a change of the tap's graph needs another
_patched = False


def register() -> None:
    """Wrap what the monitor needs of vLLM; nothing at all where ``NAE_MONITOR_CONFIG`` is unset.

    Raises no ``Exception``. What a configuration asks for is looked at later, in the worker, where
    a fault can stop the engine in an orderly way. Where this vLLM lacks what the plugin wraps,
    there is no such place: the process ends with ``SystemExit`` unless the configuration says
    ``on_failure: serve``.
    """
    global _patched
    path = configured()
    if path is None or _patched:
        return
    try:
        _patch(path)
        _patched = True
    except Exception as error:  # noqa: BLE001 - vLLM calls this unguarded
        refuse(path, "vLLM", error)


def _patch(path: str) -> None:
    from vllm.config import VllmConfig
    from vllm.v1.worker.worker_base import WorkerBase

    from nae_monitor.integrations.vllm.http import carry_headers
    from nae_monitor.integrations.vllm.worker import watch_worker

    hash_of, start = VllmConfig.compute_hash, WorkerBase.__init__

    @functools.wraps(hash_of)
    def compute_hash(self: Any, *args: Any, **kwargs: Any) -> str:
        # vLLM's key of compiled graphs does not know of plugins: a graph without the tap would
        # be taken from the cache, and would capture nothing.
        own = hash_of(self, *args, **kwargs)
        return hashlib.sha256(f"{own}/{SALT}".encode()).hexdigest()[: len(own)]

    @functools.wraps(start)
    def started(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        try:
            watch_worker(self, path)
        except Exception as error:  # noqa: BLE001 - a worker of another shape
            refuse(path, "vLLM", error)

    VllmConfig.compute_hash = compute_hash
    WorkerBase.__init__ = started
    try:
        carry_headers()
    except Exception as error:  # noqa: BLE001 - rows are captured all the same
        log.warning("HTTP headers are not carried to requests: %s", type(error).__name__)
