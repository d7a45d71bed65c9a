"""Alerts as OpenTelemetry spans, log events and metrics.

The span is a child of the request's own span by the context captured with it, which stays valid
after that span ended. Where that span was not sampled the default sampler would drop a child, so
the alert becomes a root span with a link.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry._logs import Logger, LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.metrics import Counter
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from nae_monitor.alert.event import SEVERITY_NUMBER
from nae_monitor.alert.ocsf import PACKAGE_VERSION
from nae_monitor.alert.otel_export import Telemetry, open_telemetry, otlp_missing
from nae_monitor.alert.otel_mapping import (
    EVENT_NAME,
    SPAN_NAME,
    evaluation_attributes,
    metric_attributes,
    span_attributes,
)
from nae_monitor.alert.otel_metrics import register_counters
from nae_monitor.alert.privacy import ContentPolicy, RedactedAlert
from nae_monitor.alert.threaded import RetryingSink
from nae_monitor.errors import Mark, Problem
from nae_monitor.health import Health
from nae_monitor.records import Request
from nae_monitor.sink_settings import OtelSettings

SCOPE = "nae_monitor"
QUEUE_EVENTS = 2048


@dataclass(frozen=True, slots=True)
class _Output:
    """The instruments of one process."""

    telemetry: Telemetry
    tracer: trace.Tracer
    logger: Logger
    alerts: Counter


class OtelSink(RetryingSink):
    """One span, one log event and one count for each alert, made on this sink's thread."""

    def __init__(
        self,
        settings: OtelSettings,
        policy: ContentPolicy,
        health: Health,
        *,
        telemetry: Callable[[], Telemetry] | None = None,
        name: str = "otel",
    ) -> None:
        self._settings = settings
        self._open_telemetry = telemetry or partial(open_telemetry, settings.endpoint)
        self._sink_stats: Callable[[], Mapping[str, Mapping[str, int]]] = dict
        super().__init__(name, policy, health, QUEUE_EVENTS)
        self._ensure_thread()  # the health metrics are wanted before the first alert

    def observe(self, sink_stats: Callable[[], Mapping[str, Mapping[str, int]]]) -> None:
        """Report these sinks' pending alerts as metrics too."""
        self._sink_stats = sink_stats

    def _start_afresh(self) -> None:
        self._output: _Output | None = None  # a gRPC channel does not survive a fork
        self._made = 0  # alerts at the front that have a span, not yet taken by the collector
        self._unrecorded = 0  # of those, spans that a sampler or a missing provider refused
        super()._start_afresh()

    def _step(self) -> None:
        if self._output is None:
            if time.monotonic() < self._retry_at_s:
                return
            self._output = self._open()
        super()._step()

    def _open(self) -> _Output:
        telemetry = self._open_telemetry()
        meter = telemetry.meter_provider.get_meter(SCOPE, PACKAGE_VERSION)
        register_counters(
            meter, self._health.counters, lambda: self._sink_stats(), self._health.gauges
        )
        return _Output(
            telemetry,
            telemetry.tracer_provider.get_tracer(SCOPE, PACKAGE_VERSION),
            telemetry.logger_provider.get_logger(SCOPE, PACKAGE_VERSION),
            meter.create_counter("nae.alerts", "{alert}", "Alerts by rule and severity"),
        )

    def _deliver(self, alerts: Sequence[RedactedAlert]) -> int:
        output = self._output
        if output is None:
            return 0
        while self._made < len(alerts):  # made once: a retry must not invent new span ids
            recorded = False
            with self._health.guard(f"alert.{self.name}.span"):
                recorded = self._make(output, alerts[self._made])
            self._made += 1
            self._unrecorded += not recorded
        sent = False
        with self._health.guard(f"alert.{self.name}.export"):
            sent = output.telemetry.send()
        return len(alerts) if sent else 0

    def _delivered(self, alerts: int) -> None:
        if alerts:
            super()._delivered(alerts - self._unrecorded)
            self._tally.dropped("not_recording", self._unrecorded)
            self._made = self._unrecorded = 0

    def _make(self, output: _Output, alert: RedactedAlert) -> bool:
        """Make span, event and count; False if the span is not recorded."""
        policy = self._policy
        span = start_span(output.tracer, alert.request, alert.time_unix_ns)
        recorded = span.is_recording()
        shown = policy.narrow(alert, policy.span_mode)
        span.set_attributes(
            span_attributes(shown, policy.span_mode, guardrail_names=self._settings.guardrail_names)
        )
        span.end(end_time=alert.time_unix_ns)
        output.logger.emit(evaluation_record(policy.narrow(alert, policy.event_mode), span))
        output.alerts.add(1, metric_attributes(alert))
        return recorded

    def _finish(self) -> None:
        if self._output is not None:
            self._output.telemetry.shutdown(max(0.0, self._stop_at_s - time.monotonic()))


def start_span(tracer: trace.Tracer, request: Request, start_unix_ns: int) -> Span:
    """Start the alert's span under, or linked to, the span its request ran in."""
    context, links = Context(), []
    if request.trace is not None:
        parent = SpanContext(
            request.trace.trace_id,
            request.trace.span_id,
            is_remote=True,
            trace_flags=TraceFlags(request.trace.trace_flags),
        )
        if parent.is_valid and parent.trace_flags.sampled:
            context = trace.set_span_in_context(NonRecordingSpan(parent), context)
        elif parent.is_valid:
            links = [Link(parent)]
    return tracer.start_span(
        SPAN_NAME, context, kind=SpanKind.INTERNAL, links=links, start_time=start_unix_ns
    )


def evaluation_record(alert: RedactedAlert, span: Span) -> LogRecord:
    """The log event of an alert, correlated with its span."""
    return LogRecord(
        timestamp=alert.time_unix_ns,
        observed_timestamp=alert.time_unix_ns,
        context=trace.set_span_in_context(span, Context()),
        severity_text=alert.severity.upper(),
        severity_number=SeverityNumber(SEVERITY_NUMBER[alert.severity]),
        attributes=evaluation_attributes(alert),
        event_name=EVENT_NAME,
    )


def check(settings: OtelSettings, where: Mark) -> list[Problem]:
    """What would keep the sink from working; a collector that is away is no problem."""
    if settings.endpoint is None:
        return []
    problems = []
    if not _is_otlp_url(settings.endpoint):
        mend = "use http://HOST:4317 or https://HOST:4317"
        problems.append(Problem(where, f"endpoint {settings.endpoint!r} is no OTLP URL", mend))
    if otlp_missing():
        mend = "pip install 'nae-monitor[otlp]', or leave endpoint out to use the host's providers"
        problems.append(Problem(where, "the OTLP gRPC exporter is not installed", mend))
    return problems


def _is_otlp_url(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False
