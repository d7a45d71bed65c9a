"""Where telemetry goes: the host's providers, or an OTLP collector of this sink's own.

With an endpoint the sink asks the exporter itself, batch by batch: a batch processor's
``force_flush`` can take many times its timeout and report success for what it lost.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from opentelemetry import _logs, metrics, trace

if TYPE_CHECKING:
    from nae_monitor.alert.otlp_answer import Answer

EXPORT_TIMEOUT_S = 3.0
METRICS_INTERVAL_MS = 60_000
_EXPORTER_MODULE = "opentelemetry.exporter.otlp.proto.grpc"


class Telemetry(Protocol):
    """The providers of one process."""

    tracer_provider: trace.TracerProvider
    logger_provider: _logs.LoggerProvider
    meter_provider: metrics.MeterProvider


class HostTelemetry:
    """The host's global providers; exporting and shutting down is the host's business."""

    def __init__(self) -> None:
        self.tracer_provider: trace.TracerProvider = trace.get_tracer_provider()
        self.logger_provider: _logs.LoggerProvider = _logs.get_logger_provider()
        self.meter_provider: metrics.MeterProvider = metrics.get_meter_provider()


def load_exporters() -> None:
    """Import what exporting takes: about a second in which other threads hardly get to run."""
    for name in ("_log_exporter", "metric_exporter", "trace_exporter"):
        importlib.import_module(f"{_EXPORTER_MODULE}.{name}")


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """What the SDK made of alerts: finished spans, and the log records that go with them."""

    spans: Sequence[Any] = ()
    events: Sequence[Any] = ()

    @classmethod
    def of(cls, parcels: Sequence[Parcel]) -> Parcel:
        """All of them in one."""
        spans = [span for parcel in parcels for span in parcel.spans]
        return cls(spans, [event for parcel in parcels for event in parcel.events])


class OtlpTelemetry:
    """Providers of our own, exported over OTLP gRPC to ``endpoint``.

    Not thread-safe: spans are made, taken and sent on one thread.
    """

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import (
            InMemoryLogRecordExporter,
            SimpleLogRecordProcessor,
        )
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        from nae_monitor.alert.otlp_answer import EventExporter, SpanExporter

        options: dict[str, Any] = {
            "endpoint": endpoint,
            "insecure": urlsplit(endpoint).scheme == "http",
            "timeout": EXPORT_TIMEOUT_S,
        }
        resource = Resource.create({"service.name": "nae-monitor"})
        self._spans, self._span_exporter = InMemorySpanExporter(), SpanExporter(**options)
        self._events = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
        self._event_exporter = EventExporter(**options)
        tracers = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        loggers = LoggerProvider(resource, shutdown_on_exit=False)
        loggers.add_log_record_processor(SimpleLogRecordProcessor(self._events))
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(**options), METRICS_INTERVAL_MS)
        self._meters = MeterProvider([reader], resource, shutdown_on_exit=False)
        self.tracer_provider: trace.TracerProvider = tracers
        self.logger_provider: _logs.LoggerProvider = loggers
        self.meter_provider: metrics.MeterProvider = self._meters

    def take(self) -> Parcel:
        """What was made since the last call."""
        parcel = Parcel(self._spans.get_finished_spans(), self._events.get_finished_logs())
        self._spans.clear()
        self._events.clear()
        return parcel

    def send_spans(self, parcel: Parcel) -> Answer:
        """Export the spans; the same ones may be sent again after a failure."""
        return self._span_exporter.ask(parcel.spans)

    def send_events(self, parcel: Parcel) -> int:
        """Export the log records, once; how many of them the collector did not take."""
        if not parcel.events:
            return 0
        answer = self._event_exporter.ask(parcel.events)
        return len(parcel.events) if answer.failure else answer.rejected

    def shutdown(self, deadline_s: float) -> None:
        """Shut down on another thread: without a collector the SDK needs far longer."""
        thread = threading.Thread(target=self._shutdown, name="nae-otel-shutdown", daemon=True)
        thread.start()
        thread.join(deadline_s)

    def _shutdown(self) -> None:
        self._span_exporter.shutdown()
        self._event_exporter.shutdown()
        self._meters.shutdown()


def otlp_missing() -> bool:
    """Whether the optional exporter package is absent."""
    try:
        return importlib.util.find_spec(_EXPORTER_MODULE) is None
    except ModuleNotFoundError:  # a parent package is absent
        return True
