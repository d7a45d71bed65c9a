"""The OTLP gRPC exporters, with what the collector answered: the SDK's own keep it to themselves.

A collector may take a request and reject some of its spans (OTLP 1.x, "partial success"). How many
is in the answer, which ones is not, and the request must not be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grpc import RpcError
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter


@dataclass(frozen=True, slots=True)
class Answer:
    """What a collector said to one request of ``sent`` spans or events."""

    failure: str = ""  # gRPC status, or an exception's type; "": it took the request
    rejected: int = 0  # of the request that it took, 0 to all
    is_seen: bool = True  # False: the request succeeded and the SDK kept the answer back


class _Listening:
    """A client of a collector that passes on what is said to it."""

    def __init__(self, client: Any, told: Callable[[str, int], None]) -> None:
        self._client = client
        self._told = told

    def Export(self, **call: Any) -> Any:  # noqa: N802 - the name in the OTLP service
        try:
            answer = self._client.Export(**call)
        except RpcError as error:
            self._told(error.code().name, 0)
            raise
        partial = answer.partial_success  # of spans or of log records; zero where there is none
        self._told(
            "", getattr(partial, "rejected_spans", 0) or getattr(partial, "rejected_log_records", 0)
        )
        return answer


class _Telling:
    """What is added to an exporter of the SDK, which makes its client anew after an outage."""

    _client: Any
    _said: tuple[str, int] | None = None

    def _initialize_channel_and_stub(self) -> None:
        super()._initialize_channel_and_stub()  # type: ignore[misc]
        self._client = _Listening(self._client, self._hear)

    def _hear(self, failure: str, rejected: int) -> None:
        self._said = failure, rejected

    def ask(self, sent: Any) -> Answer:
        """Export, and return what the last attempt of the SDK was answered."""
        self._said = None
        try:
            result = self.export(sent)  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001 - what cannot be encoded is told as refused
            return Answer(type(error).__name__)
        failure, rejected = self._said or ("", 0)
        if result.name != "SUCCESS":
            return Answer(failure or "export_failed")
        return Answer("", min(max(rejected, 0), len(sent)), self._said is not None)


class SpanExporter(_Telling, OTLPSpanExporter):
    """Spans over OTLP gRPC; :meth:`ask` in place of ``export``."""


class EventExporter(_Telling, OTLPLogExporter):
    """Log records over OTLP gRPC; :meth:`ask` in place of ``export``."""
