"""Alerts as OpenTelemetry spans and log events to a collector, from an outbox.

Spans are exported by this sink itself, which so learns what the collector said: a batch
processor's ``force_flush`` can take many times its timeout and report success for what it lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from nae_monitor.alert.otel_export import OtlpTelemetry, load_exporters
from nae_monitor.alert.otel_spans import SpanMaker
from nae_monitor.alert.outbox import UNREADABLE, Outbox
from nae_monitor.alert.outbox_place import outbox_path
from nae_monitor.alert.outbox_rows import Row
from nae_monitor.alert.privacy import ContentPolicy
from nae_monitor.alert.relaying import DELIVERED, Errand, Fate, RelayingSink
from nae_monitor.alert.restored_alert import attributes_of, restored
from nae_monitor.health import Health
from nae_monitor.sink_settings import OtelSettings

NOT_RECORDED = "not_recorded"

QUEUE_EVENTS = 2048


class OtlpSink(RelayingSink):
    """One span, one log event and one count for each alert; see :class:`RelayingSink`.

    ``delivered`` means that the collector acknowledged the span. After a crash between that and
    the next commit the span is sent again under another span id; ``nae.alert.id`` is the same.
    """

    def __init__(
        self,
        settings: OtelSettings,
        policy: ContentPolicy,
        health: Health,
        *,
        name: str = "otel",
    ) -> None:
        """Open the outbox and start sending what an earlier process left in it.

        Raises:
            OSError: the outbox cannot be written, or is something else.
            sqlite3.Error: SQLite cannot use it.
        """
        load_exporters()  # at the start, and not beside the first calls of emit
        self._settings = settings
        self._sink_stats: Callable[[], Mapping[str, Mapping[str, int]]] = dict
        super().__init__(
            name,
            policy,
            health,
            queue_events=QUEUE_EVENTS,
            path=outbox_path(settings),
            max_bytes=settings.outbox_bytes,
        )

    def observe(self, sink_stats: Callable[[], Mapping[str, Mapping[str, int]]]) -> None:
        """Report these sinks' pending alerts as metrics too."""
        self._sink_stats = sink_stats

    @property
    def _far_end(self) -> str:
        return self._settings.endpoint or ""

    def _start_afresh(self) -> None:
        self._maker: SpanMaker | None = None  # a gRPC channel does not survive a fork
        self._made: dict[str, Fate] = {}  # by event id: has a span, which nobody has taken yet
        super()._start_afresh()

    def _transmit(self, outbox: Outbox) -> None:
        """The health metrics are wanted before the first alert; loading the exporters is slow."""
        if self._maker is None and not self._is_sending and time.monotonic() >= self._send_at_s:
            self._errand = Errand(self._open, (), self.name)
        super()._transmit(outbox)

    def _open(self) -> list[Fate]:
        self._maker = SpanMaker(
            OtlpTelemetry(self._settings.endpoint or ""),
            self._policy,
            self._health,
            lambda: self._sink_stats(),
            guardrail_names=self._settings.guardrail_names,
        )
        return []

    def _carry(self, rows: Sequence[Row]) -> list[Fate]:
        maker = self._maker
        if maker is None:
            return []
        ids = [attributes_of(row).get("id", "") for row in rows]
        for event_id, row in zip(ids, rows, strict=True):
            if event_id not in self._made:  # made once: a retry must not invent new span ids
                self._made[event_id] = self._make(maker, row)
        if not maker.telemetry.send():
            self._why_later = "export_failed"
            return []
        fates = [self._made[event_id] for event_id in ids]
        self._made.clear()
        return fates

    def _make(self, maker: SpanMaker, row: Row) -> Fate:
        fate = Fate(UNREADABLE)
        with self._health.guard(f"alert.{self.name}.span"):
            # A span that is not recorded goes nowhere: OTEL_SDK_DISABLED is the host's to set.
            fate = DELIVERED if maker.make(restored(row)) else Fate(NOT_RECORDED)
        return fate

    def _let_go(self, outbox: Outbox) -> None:
        super()._let_go(outbox)
        if self._maker is not None:
            self._maker.telemetry.shutdown(max(0.0, self._stop_at_s - time.monotonic()))
