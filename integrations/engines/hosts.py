"""What stands behind the tap in a worker process: a whole monitor, or the sender's half of one."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any, Protocol

from nae_monitor.alert import build_sinks
from nae_monitor.capture import CaptureListener
from nae_monitor.errors import ConfigurationError, NaeMonitorError
from nae_monitor.health import Health
from nae_monitor.integrity import blind_alert
from nae_monitor.records import Request
from nae_monitor.settings import Settings

log = logging.getLogger("nae_monitor")

CLOSE_S = 5.0  # for a process that shuts down; its engine kills it after a while


class Host(Protocol):
    """Where an engine's rows go."""

    layer: int  # K
    d_model: int
    health: Health
    listener: CaptureListener

    def should_stop(self, request_id: str) -> bool:
        """Whether a rule asked to end the request; never waits."""
        ...

    def confirm_stop(self, request_id: str, *, ended: bool) -> None:
        """The request is ended as asked, or cannot be."""
        ...

    def close(self) -> None:
        """Work off what there is, for a short while."""
        ...


class InlineHost:
    """Decodes on a thread of the engine's own process."""

    def __init__(self, settings: Settings, tokenizer: Any) -> None:
        from nae_monitor.monitor import Monitor

        monitor = Monitor.from_settings(settings)
        self._monitor = monitor
        self.layer, self.d_model = monitor.layer, monitor.d_model
        self.health = monitor.health
        self.listener: CaptureListener = monitor.listener(tokenizer)

    def should_stop(self, request_id: str) -> bool:
        """See :class:`Host`."""
        return self._monitor.should_stop(request_id)

    def confirm_stop(self, request_id: str, *, ended: bool) -> None:
        """See :class:`Host`."""
        self._monitor.confirm_stop(request_id, ended=ended)

    def close(self) -> None:
        """See :class:`Host`."""
        self._monitor.close(CLOSE_S)


class OutpostHost:
    """Sends rows to `nae-monitor worker`."""

    def __init__(self, settings: Settings) -> None:
        from nae_monitor.placement import open_outpost

        self.health = Health()
        self._outpost = open_outpost(settings, self.health)
        self.layer, self.d_model = self._outpost.layer, self._outpost.d_model
        self.listener: CaptureListener = self._outpost.listener()

    def should_stop(self, request_id: str) -> bool:
        """See :class:`Host`."""
        brake = self._outpost.brake
        return bool(brake.enforces and brake.should_stop(request_id))

    def confirm_stop(self, request_id: str, *, ended: bool) -> None:
        """See :class:`Host`."""
        self._outpost.brake.confirm(request_id, ended=ended)

    def close(self) -> None:
        """See :class:`Host`."""
        self._outpost.close(CLOSE_S)


def open_host(settings: Settings, tokenizer: Callable[[], Any]) -> Host:
    """The host that ``capture.placement`` names.

    Raises:
        ConfigurationError: every problem of the configuration, or of the worker it names.
    """
    if settings.capture.placement == "inline":
        return InlineHost(settings, tokenizer())
    return OutpostHost(settings)


def reason_of(error: Exception) -> str:
    """What may be said of a failed start: our own words, or the exception's type."""
    return str(error) if isinstance(error, NaeMonitorError) else type(error).__name__


def tell_blind(settings: Settings, engine: str, error: Exception) -> None:
    """Say by a critical alert, through the configured sinks, that an engine serves unmonitored."""
    why = reason_of(error)
    log.critical("monitor blind: this engine serves unmonitored: %s", why)
    try:
        sinks = build_sinks(settings.alert, settings.privacy, Health())
    except ConfigurationError as fault:
        log.critical("and no alert can tell of it: %s", fault)
        return
    request = Request("monitor", "monitor", settings.target.model)
    sinks.emit(blind_alert(engine, why, request, settings.nla.av, itertools.count()))
    sinks.close(CLOSE_S)
