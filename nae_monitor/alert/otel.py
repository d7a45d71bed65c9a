"""Alerts as telemetry of the host, made with the host's own providers.

Nothing is kept on disk here: a span is the host's as soon as it is made, and the host's processors
keep it in memory. What must survive an outage goes through :mod:`nae_monitor.alert.otlp`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from nae_monitor.alert.otel_export import HostTelemetry, Telemetry, otlp_missing
from nae_monitor.alert.otel_spans import SpanMaker
from nae_monitor.alert.privacy import ContentPolicy, RedactedAlert
from nae_monitor.alert.threaded import RetryingSink
from nae_monitor.errors import Mark, Problem
from nae_monitor.health import Health
from nae_monitor.sink_settings import OtelSettings

QUEUE_EVENTS = 2048


class OtelSink(RetryingSink):
    """One span, one log event and one count for each alert, made on this sink's thread.

    ``delivered`` means that the host's tracer recorded the span; what its processors and exporters
    do with it is not known here. A span that a sampler or a missing provider refuses is counted as
    ``dropped.not_recording``.
    """

    def __init__(
        self,
        settings: OtelSettings,
        policy: ContentPolicy,
        health: Health,
        *,
        telemetry: Callable[[], Telemetry] = HostTelemetry,
        name: str = "otel",
    ) -> None:
        self._settings = settings
        self._open_telemetry = telemetry
        self._sink_stats: Callable[[], Mapping[str, Mapping[str, int]]] = dict
        super().__init__(name, policy, health, QUEUE_EVENTS)
        self._ensure_thread()  # the health metrics are wanted before the first alert

    def observe(self, sink_stats: Callable[[], Mapping[str, Mapping[str, int]]]) -> None:
        """Report these sinks' pending alerts as metrics too."""
        self._sink_stats = sink_stats

    def _start_afresh(self) -> None:
        self._maker: SpanMaker | None = None
        super()._start_afresh()

    def _step(self) -> None:
        if self._maker is None:
            if time.monotonic() < self._retry_at_s:
                return
            self._maker = SpanMaker(
                self._open_telemetry(),
                self._policy,
                self._health,
                lambda: self._sink_stats(),
                guardrail_names=self._settings.guardrail_names,
            )
        super()._step()

    def _deliver(self, alerts: Sequence[RedactedAlert]) -> int:
        maker = self._maker
        if maker is None:
            return 0
        for alert in alerts:
            recorded = False
            with self._health.guard(f"alert.{self.name}.span"):
                recorded = maker.make(alert)
            if recorded:
                self._tally.count("delivered")
            else:
                self._tally.dropped("not_recording")
        return len(alerts)

    def _delivered(self, alerts: int) -> None:
        """Counted one by one: some were not recorded."""

    def _finish(self) -> None:
        """Flushing and shutting down is the host's business."""


def check(settings: OtelSettings, where: Mark) -> list[Problem]:
    """What would keep the sink from working; a collector that is away is no problem."""
    problems = []
    if is_sdk_disabled(os.environ):
        mend = "unset it, or take the otel sink out"
        problems.append(Problem(where, "OTEL_SDK_DISABLED is set: no span is recorded", mend))
    if settings.endpoint is None:
        return problems
    if not _is_otlp_url(settings.endpoint):
        mend = "use http://HOST:4317 or https://HOST:4317"
        problems.append(Problem(where, f"endpoint {settings.endpoint!r} is no OTLP URL", mend))
    if otlp_missing():
        mend = "pip install 'nae-monitor[otlp]', or leave endpoint out to use the host's providers"
        problems.append(Problem(where, "the OTLP gRPC exporter is not installed", mend))
    return problems


def is_sdk_disabled(environ: Mapping[str, str]) -> bool:
    """Whether the SDK makes nothing, as the OpenTelemetry specification of its variables says."""
    return environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _is_otlp_url(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False
