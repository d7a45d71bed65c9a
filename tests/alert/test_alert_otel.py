from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
from alert_parts import (
    CANARIES,
    make_alert,
    make_evidence,
    make_policy,
)
from opentelemetry import trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON, Sampler
from opentelemetry.trace import SpanKind

from nae_monitor.alert import build_sinks
from nae_monitor.alert.otel import OtelSink, check
from nae_monitor.alert.otel_mapping import GUARDRAIL_NAMES, span_attributes
from nae_monitor.alert.privacy import CAPTURE_ENV, RedactedAlert
from nae_monitor.errors import ConfigurationError, Mark
from nae_monitor.health import CIRCUIT_LIMIT, Health
from nae_monitor.records import Request, TraceRef
from nae_monitor.settings import PrivacySettings
from nae_monitor.sink_settings import AlertSettings, OtelSettings, SinkSettings

ALERT_ID = "nae.alert.id"


class HostProviders:
    """What a host application has set up, kept in memory."""

    def __init__(self, sampler: Sampler = DEFAULT_ON) -> None:
        self.spans = InMemorySpanExporter()
        self.events = InMemoryLogRecordExporter()
        self.reader = InMemoryMetricReader()
        self.tracer_provider = TracerProvider(sampler, shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.logger_provider = LoggerProvider(shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(SimpleLogRecordProcessor(self.events))
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def send(self) -> bool:
        return True

    def shutdown(self, deadline_s: float) -> None: ...

    def metric_points(self) -> dict[str, dict[tuple[Any, ...], Any]]:
        data = self.reader.get_metrics_data()
        return {
            metric.name: {
                tuple(sorted(p.attributes.items())): p.value for p in metric.data.data_points
            }
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def emit_one(
    host: HostProviders,
    health: Health,
    *,
    content: str = "hash",
    flags: int = 1,
    capture: str = "",
    **settings: Any,
) -> OtelSink:
    policy = make_policy(content, **{CAPTURE_ENV: capture})
    sink = OtelSink(OtelSettings(**settings), policy, health, telemetry=lambda: host)
    alert = make_alert(3)
    request = replace(alert.request, trace=TraceRef(0xABC, 0xDEF, flags))
    sink.emit(replace(alert, request=request))
    sink.close(10)
    return sink


def test_the_span_is_a_child_of_a_sampled_request(health: Health) -> None:
    host = HostProviders()
    sink = emit_one(host, health)
    (span,) = host.spans.get_finished_spans()
    assert (span.name, span.kind) == ("apply_guardrail nae_monitor", SpanKind.INTERNAL)
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id) == (0xABC, 0xDEF)
    assert span.context.trace_id == 0xABC
    assert not span.links
    assert sink.stats()["delivered"] == 1


def test_the_span_is_a_root_with_a_link_where_the_request_was_not_sampled(health: Health) -> None:
    host = HostProviders()
    emit_one(host, health, flags=0)
    (span,) = host.spans.get_finished_spans()
    assert span.parent is None
    assert span.context.trace_id != 0xABC
    assert [(x.context.trace_id, x.context.span_id) for x in span.links] == [(0xABC, 0xDEF)]


def test_the_span_of_a_request_without_trace_is_a_root_even_inside_another_span(
    health: Health,
) -> None:
    host = HostProviders()
    sink = OtelSink(OtelSettings(), make_policy(), health, telemetry=lambda: host)
    with trace.get_tracer("other").start_as_current_span("other"):
        sink.emit(make_alert(request=Request("r", "r", "m")))
        assert sink.close(10)
    (span,) = host.spans.get_finished_spans()
    assert span.parent is None
    assert not span.links


def test_the_attributes_are_those_of_the_contract(health: Health) -> None:
    host = HostProviders()
    emit_one(host, health)
    (span,) = host.spans.get_finished_spans()
    expected = {
        "gen_ai.operation.name": "apply_guardrail",
        "gen_ai.provider.name": "nae_monitor",
        "gen_ai.request.model": "some/model",
        "gen_ai.response.id": "r3",
        "gen_ai.conversation.id": "session-1",
        "nae.rule.id": "rule-1",
        "nae.severity": "high",
        "nae.risk_score": 75,
        "nae.first_position": 12,
        "nae.count": 2,
        "nae.fve": 0.5,
        "nae.content": "hash",
        "nae.explanation": make_policy().digest(CANARIES["explanation"]),
    }
    assert span.attributes is not None
    assert {name: span.attributes.get(name) for name in expected} == expected
    assert not set(GUARDRAIL_NAMES.values()) & set(span.attributes)
    assert span.start_time == span.end_time == 1_700_000_000_123_456_792


def test_a_span_tells_the_support_of_its_best_evidence() -> None:
    measured = make_evidence(support=0.0, support_asked=True, support_s=0.5)
    values = span_attributes(RedactedAlert(make_alert(evidence=(measured,))), "none")
    assert (values["nae.support"], values["nae.support_state"]) == (0.0, "measured")
    assert values["nae.support_seconds"] == 0.5
    unknown = make_alert(evidence=(make_evidence(support_asked=True),))
    values = span_attributes(RedactedAlert(unknown), "none")
    assert ("nae.support" in values, values["nae.support_state"]) == (False, "unknown")
    assert "nae.support_state" not in span_attributes(RedactedAlert(make_alert()), "none")


def test_the_unmerged_names_come_with_the_switch(health: Health) -> None:
    host = HostProviders()
    emit_one(host, health, guardrail_names=True)
    (span,) = host.spans.get_finished_spans()
    assert set(GUARDRAIL_NAMES.values()) <= set(span.attributes or {})


def test_the_evaluation_event_belongs_to_the_span(health: Health) -> None:
    host = HostProviders()
    emit_one(host, health)
    (span,) = host.spans.get_finished_spans()
    (event,) = host.events.get_finished_logs()
    record = event.log_record
    assert record.event_name == "gen_ai.evaluation.result"
    assert (record.trace_id, record.span_id) == (span.context.trace_id, span.context.span_id)
    assert record.attributes is not None
    assert record.attributes["gen_ai.evaluation.name"] == "rule-1"
    assert record.attributes["gen_ai.evaluation.score.value"] == 75.0
    assert record.attributes["gen_ai.evaluation.score.label"] == "high"


@pytest.mark.parametrize(
    ("content", "capture", "in_span", "in_event"),
    [
        ("full", "", False, False),
        ("full", "SPAN_ONLY", True, False),
        ("full", "EVENT_ONLY", False, True),
        ("hash", "true", False, False),
        ("none", "true", False, False),
    ],
)
def test_text_shows_only_where_privacy_and_the_standard_switch_allow_it(
    health: Health, content: str, capture: str, in_span: bool, in_event: bool
) -> None:
    host = HostProviders()
    emit_one(host, health, content=content, capture=capture)
    span = host.spans.get_finished_spans()[0].to_json()
    event = host.events.get_finished_logs()[0].to_json()
    assert ("canary" in span, "canary" in event) == (in_span, in_event)


def test_a_span_the_host_does_not_record_is_counted_as_dropped(health: Health) -> None:
    sink = emit_one(HostProviders(ALWAYS_OFF), health, flags=0)
    assert (sink.stats()["delivered"], sink.stats()["dropped.not_recording"]) == (0, 1)


def test_health_and_alerts_are_metrics(health: Health) -> None:
    health.count("tokens.seen", 7)
    health.count("dropped.queue_full", 2)
    host = HostProviders()
    emit_one(host, health)
    points = host.metric_points()
    assert points["nae.tokens"] == {(("nae.stage", "seen"),): 7}
    assert points["nae.tokens.dropped"] == {(("nae.reason", "queue_full"),): 2}
    assert list(points["nae.alerts"].values()) == [1]
    assert points["nae.sink.alerts"][("nae.outcome", "otel.delivered"),] == 1


@pytest.mark.parametrize(
    ("counter", "metric", "attribute"),
    [
        ("placement.refused_turns", "nae.placement", ("nae.event", "refused_turns")),
        (
            "placement.rows_of_unknown_turns",
            "nae.placement",
            ("nae.event", "rows_of_unknown_turns"),
        ),
        ("placement.frames_too_long", "nae.placement", ("nae.event", "frames_too_long")),
        ("blind.no_rows", "nae.blind", ("nae.reason", "no_rows")),
        ("blind.not_mapped", "nae.blind", ("nae.reason", "not_mapped")),
    ],
)
def test_what_goes_unread_is_a_metric(
    counter: str, metric: str, attribute: tuple[str, str], health: Health
) -> None:
    host = HostProviders()
    emit_one(host, health)
    health.count(counter, 2)
    assert host.metric_points()[metric] == {(attribute,): 2}


def test_a_part_that_goes_off_and_comes_on_again_is_a_metric(health: Health) -> None:
    host = HostProviders()
    emit_one(host, health)
    for _ in range(CIRCUIT_LIMIT):
        health.failed("decode", ValueError())
    health.recovered("decode")
    points = host.metric_points()
    for metric in ("nae.circuit.opened", "nae.circuit.closed"):
        assert points[metric] == {(("nae.component", "decode"),): 1}


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "ftp://h:1", "http://", "http://h:x"])
def test_an_impossible_endpoint_stops_the_start(endpoint: str, health: Health) -> None:
    settings = AlertSettings((SinkSettings("otel", OtelSettings(endpoint)),))
    with pytest.raises(ConfigurationError, match=r"alert.sinks\[0\].otel: endpoint"):
        build_sinks(settings, PrivacySettings(), health)


def test_a_missing_exporter_package_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "opentelemetry.exporter.otlp"
    for module in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    (problem,) = check(OtelSettings("http://h:1"), Mark("here"))
    assert "not installed" in problem.message
    assert "nae-monitor[otlp]" in problem.mend
    assert not check(OtelSettings(), Mark("here"))
