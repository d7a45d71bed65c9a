"""Alerts as OpenTelemetry spans and log events to a collector, from an outbox.

Spans are exported by this sink itself, which so learns what the collector said: a batch
processor's ``force_flush`` can take many times its timeout and report success for what it lost.
Transport is OTLP over gRPC; a collector's HTTP port is not spoken to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nae_monitor.alert.otel_export import OtlpTelemetry, Parcel, load_exporters
from nae_monitor.alert.otel_spans import SpanMaker
from nae_monitor.alert.outbox import UNREADABLE, Outbox
from nae_monitor.alert.outbox_place import outbox_path
from nae_monitor.alert.outbox_rows import Row
from nae_monitor.alert.privacy import ContentPolicy
from nae_monitor.alert.relaying import DELIVERED, Errand, Fate, FrontRow, RelayingSink
from nae_monitor.alert.restored_alert import attributes_of, restored
from nae_monitor.health import Health
from nae_monitor.sink_settings import OtelSettings

NOT_RECORDED, REJECTED = "not_recorded", "rejected"
NOT_TOLD_APART = "partly_rejected"  # of rows sent together, of which the collector rejected some
_INVALID = "INVALID_ARGUMENT"  # OTLP: the request's data is bad
# Nobody looked at the alert: the collector is away, slow, or a call of it was given up.
_UNANSWERED = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "export_failed"})
QUEUE_EVENTS = 2048
SINGLY_ROWS = 1000  # sent one by one after a request that was taken in part


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What became of an alert on its way to telemetry; empty unless ``fate`` is DELIVERED."""

    fate: Fate
    parcel: Parcel


class OtlpSink(RelayingSink):
    """One span, one log event and one count for each alert; see :class:`RelayingSink`.

    ``delivered`` means that the collector took the span. After a crash between that and the next
    commit the span is sent again under another span id; ``nae.alert.id`` is the same.

    A span that the collector rejects is counted as ``rejected_spans`` and its alert as refused; it
    is set aside for ``alerts resend``. Of spans sent together a collector says how many it
    rejects and not which: those are all set aside, and the next ones sent one by one. An alert
    that alone is not taken for minutes, while the next one is, is refused too. Log events are sent
    once; those not taken are counted as ``events_lost``.
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
        self._telemetry: OtlpTelemetry | None = None
        self._made: dict[str, Made] = {}  # by event id: made, and nobody has taken it yet
        self._singly_rows = 0  # to be sent one by one
        self._front = FrontRow()
        super()._start_afresh()

    def _transmit(self, outbox: Outbox) -> None:
        """The health metrics are wanted before the first alert; loading the exporters is slow."""
        if self._maker is None and not self._is_sending and time.monotonic() >= self._send_at_s:
            self._errand = Errand(self._open, (), self.name)
        super()._transmit(outbox)

    def _open(self) -> list[Fate]:
        telemetry = OtlpTelemetry(self._settings.endpoint or "")
        self._maker = SpanMaker(
            telemetry,
            self._policy,
            self._health,
            lambda: self._sink_stats(),
            guardrail_names=self._settings.guardrail_names,
        )
        self._telemetry = telemetry
        return []

    def _carry(self, rows: Sequence[Row]) -> list[Fate]:
        telemetry = self._telemetry
        if telemetry is None:
            return []
        for row in rows:
            if _id_of(row) not in self._made:  # made once: a retry must not invent new span ids
                self._made[_id_of(row)] = self._make(telemetry, row)
        fates = [] if self._singly_rows else self._carry_together(telemetry, rows)
        if self._singly_rows and not fates:
            fates = self._carry_singly(telemetry, rows)
            self._singly_rows = max(0, self._singly_rows - len(fates))
        for row in rows[: len(fates)]:
            self._made.pop(_id_of(row), None)
        return fates

    def _carry_together(self, telemetry: OtlpTelemetry, rows: Sequence[Row]) -> list[Fate]:
        sent = {_id_of(row): self._made[_id_of(row)] for row in rows}
        rejected = self._send(telemetry, sent.values())
        if rejected is None:
            if self._why_later not in _UNANSWERED:
                self._singly_rows = len(rows)  # it may be over one of them
            return []
        fates = [self._made[_id_of(row)].fate for row in rows]
        if rejected == 0:
            return fates
        if rejected == sum(len(made.parcel.spans) for made in sent.values()):
            return [Fate(REJECTED) if fate is DELIVERED else fate for fate in fates]
        self._singly_rows = SINGLY_ROWS
        for place, fate in enumerate(fates):
            if fate is DELIVERED:
                fates[place] = Fate(NOT_TOLD_APART, is_delivered=rejected <= 0)
                rejected -= 1
        return fates

    def _carry_singly(self, telemetry: OtlpTelemetry, rows: Sequence[Row]) -> list[Fate]:
        fates: list[Fate] = []
        for row in rows:
            if time.monotonic() >= self._stop_at_s:
                break
            fate = self._fate_of(telemetry, row)
            if fate is None and not fates and self._front_is_stuck(row, rows[1:]):
                return self._past_front(telemetry, rows)
            if fate is None:
                break
            fates.append(fate)
        return fates

    def _front_is_stuck(self, row: Row, others: Sequence[Row]) -> bool:
        return self._why_later not in _UNANSWERED and self._front.is_stuck(row) and bool(others)

    def _past_front(self, telemetry: OtlpTelemetry, rows: Sequence[Row]) -> list[Fate]:
        """Fates up to the next row that the collector takes while it still refuses the first."""
        why, fates = self._why_later, []
        for row in rows[1:]:
            fate = self._fate_of(telemetry, row)
            if fate is None:
                return []
            fates.append(fate)
            if fate is DELIVERED:
                first = self._fate_of(telemetry, rows[0])
                return [first or Fate(f"answered_{why}"), *fates]
        return []

    def _fate_of(self, telemetry: OtlpTelemetry, row: Row) -> Fate | None:
        """Of a row sent alone; None: later."""
        made = self._made[_id_of(row)]
        rejected = self._send(telemetry, [made])
        if rejected is None:
            return Fate(f"answered_{_INVALID}") if self._why_later == _INVALID else None
        return Fate(REJECTED) if rejected else made.fate

    def _send(self, telemetry: OtlpTelemetry, sent: Iterable[Made]) -> int | None:
        """How many spans the collector rejected; None where it took nothing of the request."""
        parcel = Parcel.of([made.parcel for made in sent])
        if not parcel.spans:
            return 0
        answer = telemetry.send_spans(parcel)
        if answer.failure:
            self._why_later = answer.failure
            return None
        self._tally.count("rejected_spans", answer.rejected)
        if not answer.is_seen:
            self._tally.count("answers_unseen", len(parcel.spans))
        if answer.rejected < len(parcel.spans):
            self._tally.count("events_lost", telemetry.send_events(parcel))
        return answer.rejected

    def _make(self, telemetry: OtlpTelemetry, row: Row) -> Made:
        fate, maker = Fate(UNREADABLE), self._maker
        with self._health.guard(f"alert.{self.name}.span"):
            # A span that is not recorded goes nowhere: OTEL_SDK_DISABLED is the host's to set.
            recorded = maker is not None and maker.make(restored(row))
            fate = DELIVERED if recorded else Fate(NOT_RECORDED)
        parcel = telemetry.take()
        return Made(fate, parcel if fate is DELIVERED else Parcel())

    def _let_go(self, outbox: Outbox) -> None:
        super()._let_go(outbox)
        if self._telemetry is not None:
            self._telemetry.shutdown(max(0.0, self._stop_at_s - time.monotonic()))


def _id_of(row: Row) -> str:
    return attributes_of(row).get("id", "")
