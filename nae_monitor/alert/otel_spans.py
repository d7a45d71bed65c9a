"""An alert as one span, one log event and one count, made with somebody's providers.

The span is a child of the request's own span by the context captured with it, which stays valid
after that span ended. Where that span was not sampled the default sampler would drop a child, so
the alert becomes a root span with a link.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from nae_monitor.alert.event import SEVERITY_NUMBER
from nae_monitor.alert.ocsf import PACKAGE_VERSION
from nae_monitor.alert.otel_export import Telemetry
from nae_monitor.alert.otel_mapping import (
    EVENT_NAME,
    SPAN_NAME,
    evaluation_attributes,
    metric_attributes,
    span_attributes,
)
from nae_monitor.alert.otel_metrics import register_counters
from nae_monitor.alert.privacy import ContentPolicy, RedactedAlert
from nae_monitor.health import Health
from nae_monitor.records import Request

SCOPE = "nae_monitor"
SinkStats = Callable[[], Mapping[str, Mapping[str, int]]]


class SpanMaker:
    """The instruments of one process, and what is made with them of an alert."""

    def __init__(
        self,
        telemetry: Telemetry,
        policy: ContentPolicy,
        health: Health,
        sink_stats: SinkStats,
        *,
        guardrail_names: bool,
    ) -> None:
        self._policy = policy
        self._guardrail_names = guardrail_names
        meter = telemetry.meter_provider.get_meter(SCOPE, PACKAGE_VERSION)
        register_counters(meter, health.counters, sink_stats, health.gauges)
        self._tracer = telemetry.tracer_provider.get_tracer(SCOPE, PACKAGE_VERSION)
        self._logger = telemetry.logger_provider.get_logger(SCOPE, PACKAGE_VERSION)
        self._alerts = meter.create_counter("nae.alerts", "{alert}", "Alerts by rule and severity")

    def make(self, alert: RedactedAlert) -> bool:
        """Make span, event and count; False if the span is not recorded."""
        policy = self._policy
        span = start_span(self._tracer, alert.request, alert.time_unix_ns)
        recorded = span.is_recording()
        shown = policy.narrow(alert, policy.span_mode)
        span.set_attributes(
            span_attributes(shown, policy.span_mode, guardrail_names=self._guardrail_names)
        )
        span.end(end_time=alert.time_unix_ns)
        self._logger.emit(evaluation_record(policy.narrow(alert, policy.event_mode), span))
        self._alerts.add(1, metric_attributes(alert))
        return recorded


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
