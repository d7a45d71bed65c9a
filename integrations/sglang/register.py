"""The plugin's entry point. SGLang calls it in every process it starts."""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Callable
from typing import Any

from nae_monitor.integrations.engines.switch import configured, refuse

log = logging.getLogger("nae_monitor")

HEADERS_TARGET = "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request"
_registered = False


def register() -> None:
    """Register hooks with SGLang; nothing at all where ``NAE_MONITOR_CONFIG`` is unset.

    Raises:
        SystemExit: this SGLang lacks what the plugin hooks, and the configuration does not say
            ``on_failure: serve``. SGLang itself would log any ``Exception`` and go on unwatched.
    """
    global _registered
    path = configured()
    if path is None or _registered:
        return
    try:
        _register(path)
        _registered = True
    except Exception as error:  # noqa: BLE001 - an SGLang of another shape
        refuse(path, "SGLang", error)


def _register(path: str) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from nae_monitor.integrations.sglang.engine import WatchedEngine
    from nae_monitor.integrations.sglang.http import carry_headers

    hooks: dict[str, Callable[..., Any]] = dict(WatchedEngine(path).hooks())
    for target in hooks:
        # The registry only logs a target it does not find: nothing would be captured, silently.
        pkgutil.resolve_name(target)
    try:
        pkgutil.resolve_name(HEADERS_TARGET)
        hooks[HEADERS_TARGET] = carry_headers
    except (ImportError, AttributeError) as error:
        log.warning("HTTP headers are not carried to requests: %s", type(error).__name__)
    for target, hook in hooks.items():
        HookRegistry.register(target, hook, HookType.AROUND)
