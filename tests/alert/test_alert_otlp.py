"""Alerts at a collector: what waits on disk, what is repeated, what is never lost."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alert_parts import (
    Collector,
    OtlpReceiver,
    alert_id_of,
    free_port,
    make_alert,
    make_evidence,
    make_policy,
    spans_of,
    wait_until,
)
from grpc import StatusCode
from hypothesis import given, settings
from test_alert_schema import events

from nae_monitor.alert import relaying
from nae_monitor.alert.event import AlertEvent, redacted_event, to_json
from nae_monitor.alert.ocsf import finding_of
from nae_monitor.alert.otlp import OtlpSink
from nae_monitor.alert.outbox_rows import Entry, row_of
from nae_monitor.alert.resend import restore_rejected, state_of
from nae_monitor.alert.restored_alert import restored
from nae_monitor.health import Health
from nae_monitor.records import TraceRef
from nae_monitor.sink_settings import OtelSettings


def sink_to(url: str, directory: Path, health: Health, **options: Any) -> OtlpSink:
    options.setdefault("outbox", str(directory / "otel.sqlite"))
    return OtlpSink(OtelSettings(url, **options), make_policy(), health)


def test_spans_events_and_metrics_reach_a_real_collector(
    collector: str, receiver: OtlpReceiver, health: Health, tmp_path: Path
) -> None:
    sink = sink_to(collector, tmp_path, health)
    sink.emit(make_alert(0))
    unsampled = replace(make_alert(1).request, trace=TraceRef(5, 6, 0))
    sink.emit(make_alert(1, request=unsampled))
    assert sink.close(20)
    wait_until(lambda: len(receiver.spans) == 2 and len(receiver.events) == 2)
    child, root = sorted(receiver.spans, key=lambda s: len(s.links))
    assert (int.from_bytes(child.trace_id, "big"), int.from_bytes(child.parent_span_id, "big")) == (
        0xABC,
        0xDEF,
    )
    assert root.parent_span_id == b""
    assert int.from_bytes(root.links[0].span_id, "big") == 6
    assert {e.event_name for e in receiver.events} == {"gen_ai.evaluation.result"}
    wait_until(lambda: {"nae.alerts", "nae.sink.alerts"} <= receiver.metric_names)


def test_alerts_of_an_absent_collector_wait_and_are_delivered_when_it_comes(
    health: Health,
    tmp_path: Path,
) -> None:
    port = free_port()
    sink = sink_to(f"http://127.0.0.1:{port}", tmp_path, health)
    for n in range(3):
        sink.emit(make_alert(n))
    wait_until(lambda: sink._send_at_s > 0)
    assert sink.stats()["delivered"] == 0
    receiver = OtlpReceiver(port)
    try:
        wait_until(lambda: sink.stats()["delivered"] == 3, 30)
        assert len(receiver.spans) == 3
        assert sink.close(10)
    finally:
        receiver.server.stop(0).wait()


def test_every_alert_of_two_outages_of_a_real_collector_arrives(
    sleeping_collector: Collector, receiver: OtlpReceiver, health: Health, tmp_path: Path
) -> None:
    sink = sink_to(sleeping_collector.url, tmp_path, health)
    for number in range(6):
        sink.emit(make_alert(number))
        if number in (2, 5):  # nobody was there for these three
            wait_until(lambda: sink._send_at_s > 0)
            sleeping_collector.start()
            wait_until(lambda n=number: sink.stats()["delivered"] == n + 1)
            sleeping_collector.stop()
            sink._send_at_s = 0.0
    ids = {alert_id_of(span) for span in receiver.spans}
    assert ids == {make_alert(number).alert_id for number in range(6)}
    assert len(receiver.events) >= 6
    sink.close(5)


@pytest.mark.timeout(60)
def test_alerts_are_committed_while_a_collector_hangs_and_close_keeps_its_deadline(
    health: Health, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hung:  # it listens and never answers
        sink = sink_to(f"http://127.0.0.1:{hung.getsockname()[1]}", tmp_path, health)
        sink.emit(make_alert(0))
        wait_until(lambda: sink._errand is not None and sink._errand.rows)
        for n in range(1, 60):
            sink.emit(make_alert(n))
        wait_until(lambda: sink.stats()["accepted"] == 60)
        assert sink.stats()["delivered"] == 0
        assert not sink.close(1.0)


@pytest.mark.timeout(20)  # the SDK's own flush and shutdown took 27 to 34 s
def test_without_a_collector_emitting_returns_and_close_keeps_its_deadline(
    health: Health, tmp_path: Path
) -> None:
    sink = sink_to(f"http://127.0.0.1:{free_port()}", tmp_path, health)
    for n in range(3000):
        sink.emit(make_alert(n))
    assert not sink.close(1.0)
    wait_until(lambda: _taken_or_dropped(sink) == 3000)
    assert sink.stats()["outbox_events"] == sink.stats()["accepted"]


def row_in_outbox(event: AlertEvent) -> Any:
    return row_of(1, Entry.of(event, "hash"), 1)


@given(events)
@settings(deadline=None)
def test_an_alert_restored_from_its_event_says_the_same_again(event: AlertEvent) -> None:
    data = json.loads(event.value())
    content = data["unmapped"]["nae.content"]
    again = finding_of(restored(row_in_outbox(event)), data["metadata"]["uid"], str, content)
    assert json.loads(to_json(again)) == data


def test_a_restored_alert_has_its_trace_and_its_time_to_the_microsecond() -> None:
    alert = make_alert(1, evidence=(make_evidence(),))
    found = restored(row_in_outbox(redacted_event(alert, make_policy())))
    assert found.request.trace == alert.request.trace
    assert abs(found.time_unix_ns - alert.time_unix_ns) <= 1000
    assert found.alert_id == alert.alert_id


def test_what_an_absent_collector_left_is_delivered_by_the_next_process(
    receiver: OtlpReceiver, health: Health, tmp_path: Path
) -> None:
    outbox = str(tmp_path / "o.sqlite")
    first = sink_to(f"http://127.0.0.1:{free_port()}", tmp_path, health, outbox=outbox)
    for number in range(120):
        first.emit(make_alert(number))
    assert not first.close(1.0)
    assert first._thread is not None
    first._thread.join()  # then the file is free
    url = f"http://127.0.0.1:{receiver.port}"
    second = sink_to(url, tmp_path, Health(), outbox=outbox)
    wait_until(lambda: second.stats()["delivered"] == 120)
    assert second.close(10)
    assert second.stats()["recovered"] == 120
    assert len(receiver.spans) == 120


def test_a_collector_that_takes_nothing_gets_each_span_once_under_one_id(
    receiver: OtlpReceiver, health: Health, tmp_path: Path
) -> None:
    receiver.refusals = [StatusCode.UNAUTHENTICATED] * 3
    sink = sink_to(f"http://127.0.0.1:{receiver.port}", tmp_path, health)
    sink.emit(make_alert(0))
    wait_until(lambda: sink.stats().get("retried.UNAUTHENTICATED"))
    sink.emit(make_alert(1))
    wait_until(lambda: sink.stats()["delivered"] == 2)
    assert sink.close(10)
    assert receiver.refusals == []
    assert len({span.span_id for span in receiver.spans}) == len(receiver.spans) == 2
    asked = {span.span_id for request in receiver.asked for span in spans_of(request)}
    assert asked == {span.span_id for span in receiver.spans}


def all_at_once(
    receiver: OtlpReceiver, health: Health, directory: Path, count: int
) -> tuple[OtlpSink, list[str]]:
    """A sink whose alerts waited for the collector together, and their ids."""
    absent = sink_to(f"http://127.0.0.1:{free_port()}", directory, Health())
    alerts = [make_alert(number) for number in range(count)]
    for alert in alerts:
        absent.emit(alert)
    wait_until(lambda: absent.stats()["accepted"] == count)
    absent.close(0.5)
    assert absent._thread is not None
    absent._thread.join()  # then the file is free
    sink = sink_to(f"http://127.0.0.1:{receiver.port}", directory, health)
    return sink, [alert.alert_id for alert in alerts]


def rejected_in(directory: Path) -> dict[str, int]:
    return dict(state_of(directory / "otel.sqlite").rejected)


def test_a_span_rejected_within_a_request_that_was_taken_is_not_delivered_and_not_lost(
    receiver: OtlpReceiver, health: Health, tmp_path: Path
) -> None:
    bad = make_alert(1).alert_id
    receiver.rejected = {bad, make_alert(7).alert_id}
    sink, ids = all_at_once(receiver, health, tmp_path, 3)
    wait_until(lambda: sink.stats()["pending"] == 0)
    assert (sink.stats()["delivered"], sink.stats()["dropped.refused"]) == (2, 1)
    for number in range(3, 9):  # from now on one by one: it is known which
        sink.emit(make_alert(number))
    wait_until(lambda: sink.stats()["delivered"] == 7)
    wait_until(lambda: sink.stats()["dropped.refused"] == 2)
    sink.close(10)
    assert health.counters()["alert.otel.rejected_spans"] == 2
    assert rejected_in(tmp_path) == {"partly_rejected": 3, "rejected": 1}
    asked = [alert_id_of(span) for request in receiver.asked for span in spans_of(request)]
    assert sorted(asked) == sorted([*ids, *(make_alert(n).alert_id for n in range(3, 9))])
    assert [len(spans_of(request)) for request in receiver.asked] == [3, 1, 1, 1, 1, 1, 1]
    wait_until(lambda: "nae.sink.alerts" in receiver.metric_names)
    assert "otel.rejected_spans" in receiver.outcomes


def test_what_was_rejected_is_delivered_when_the_operator_sends_it_again(
    receiver: OtlpReceiver, health: Health, tmp_path: Path
) -> None:
    receiver.rejected = {make_alert(n).alert_id for n in range(3)}
    sink, ids = all_at_once(receiver, health, tmp_path, 3)
    wait_until(lambda: sink.stats().get("dropped.refused") == 3)
    assert not sink.close(10)
    assert sink.stats()["delivered"] == 0
    assert rejected_in(tmp_path) == {"rejected": 3}
    assert receiver.events == []  # they would speak of spans that are nowhere
    receiver.rejected = set()
    assert restore_rejected(tmp_path / "otel.sqlite") == 3
    again = sink_to(f"http://127.0.0.1:{receiver.port}", tmp_path, Health())
    assert again.close(30)
    assert again.stats()["delivered"] == 3
    assert {alert_id_of(span) for span in receiver.spans[3:]} == set(ids)


def test_an_alert_whose_data_is_invalid_is_set_aside_at_once_and_holds_up_no_other(
    receiver: OtlpReceiver, health: Health, tmp_path: Path
) -> None:
    receiver.hated = {make_alert(1).alert_id: StatusCode.INVALID_ARGUMENT}
    sink, ids = all_at_once(receiver, health, tmp_path, 5)
    wait_until(lambda: sink.stats()["pending"] == 0)
    sink.close(10)
    assert (sink.stats()["delivered"], sink.stats()["dropped.refused"]) == (4, 1)
    assert [alert_id_of(span) for span in receiver.spans] == [ids[0], *ids[2:]]
    assert rejected_in(tmp_path) == {"answered_INVALID_ARGUMENT": 1}
    assert [len(spans_of(request)) for request in receiver.asked] == [5, 1, 1, 1, 1, 1]


def test_an_alert_that_alone_is_never_taken_holds_up_no_other_for_good(
    receiver: OtlpReceiver, health: Health, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "STUCK_ATTEMPTS", 2)
    receiver.hated = {make_alert(1).alert_id: StatusCode.INTERNAL}
    sink, ids = all_at_once(receiver, health, tmp_path, 5)
    wait_until(lambda: sink.stats()["pending"] == 0)
    sink.close(10)
    assert (sink.stats()["delivered"], sink.stats()["dropped.refused"]) == (4, 1)
    assert [alert_id_of(span) for span in receiver.spans] == [ids[0], *ids[2:]]
    assert rejected_in(tmp_path) == {"answered_INTERNAL": 1}


def test_a_collector_that_takes_nothing_costs_no_alert_however_often_it_says_so(
    receiver: OtlpReceiver, health: Health, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "STUCK_ATTEMPTS", 2)
    receiver.refusals = [StatusCode.PERMISSION_DENIED] * 9
    sink, ids = all_at_once(receiver, health, tmp_path, 3)
    wait_until(lambda: sink.stats()["delivered"] == 3)
    assert sink.close(10)
    assert sorted(alert_id_of(span) for span in receiver.spans) == sorted(ids)
    assert rejected_in(tmp_path) == {}


@pytest.mark.parametrize(("said", "meant"), [(-3, 0), (1, 1), (2**40, 1)])
def test_a_count_of_rejected_spans_is_held_to_what_was_sent(
    said: int, meant: int, receiver: OtlpReceiver, health: Health, tmp_path: Path
) -> None:
    receiver.rejected_said = said
    sink = sink_to(f"http://127.0.0.1:{receiver.port}", tmp_path, health)
    sink.emit(make_alert())
    wait_until(lambda: sink.stats()["accepted"] == 1 and sink.stats()["pending"] == 0)
    sink.close(10)
    assert health.counters().get("alert.otel.rejected_spans", 0) == meant
    assert (sink.stats()["delivered"], sink.stats().get("dropped.refused", 0)) == (1 - meant, meant)


def test_an_exporter_that_keeps_its_answers_to_itself_is_counted(
    receiver: OtlpReceiver, health: Health, tmp_path: Path
) -> None:
    sink = sink_to(f"http://127.0.0.1:{receiver.port}", tmp_path, health)
    wait_until(lambda: sink._telemetry is not None)
    assert sink._telemetry is not None
    exporter = sink._telemetry._span_exporter
    exporter._client = exporter._client._client  # as an SDK would that makes its client otherwise
    sink.emit(make_alert())
    assert sink.close(10)
    assert (sink.stats()["delivered"], sink.stats()["answers_unseen"]) == (1, 1)


def test_log_events_that_are_not_taken_are_counted(
    receiver: OtlpReceiver, health: Health, tmp_path: Path
) -> None:
    receiver.rejected_events = 2
    sink, _ = all_at_once(receiver, health, tmp_path, 3)
    assert sink.close(10)
    assert (sink.stats()["delivered"], sink.stats()["events_lost"]) == (3, 2)


def test_a_damaged_row_is_set_aside_and_the_others_reach_the_collector(
    receiver: OtlpReceiver, health: Health, tmp_path: Path
) -> None:
    first = sink_to(f"http://127.0.0.1:{free_port()}", tmp_path, health)
    for number in range(3):
        first.emit(make_alert(number))
    assert not first.close(0.5)
    assert first._thread is not None
    first._thread.join()  # then the file is free
    with contextlib.closing(sqlite3.connect(tmp_path / "otel.sqlite")) as db, db:
        db.execute("UPDATE pending SET value = ? WHERE row_id = 2", (b'{"no": "alert"}',))
    second = sink_to(f"http://127.0.0.1:{receiver.port}", tmp_path, health)
    wait_until(lambda: second.stats()["delivered"] == 2)
    second.close(10)
    assert second.stats()["dropped.refused"] == 1
    assert len(receiver.spans) == 2
    with contextlib.closing(sqlite3.connect(tmp_path / "otel.sqlite")) as db:
        assert db.execute("SELECT reason FROM rejected").fetchall() == [("unreadable",)]


def _taken_or_dropped(sink: OtlpSink) -> int:
    stats = sink.stats()
    return stats["accepted"] + stats.get("dropped.queue_full", 0)


def test_an_alert_that_a_disabled_sdk_did_not_record_is_set_aside_and_never_delivered(
    receiver: OtlpReceiver, health: Health, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    sink = sink_to(f"http://127.0.0.1:{receiver.port}", tmp_path, health)
    sink.emit(make_alert())
    wait_until(lambda: sink.stats().get("dropped.refused"))
    sink.close(10)
    assert sink.stats()["delivered"] == 0
    assert receiver.spans == []
    with contextlib.closing(sqlite3.connect(tmp_path / "otel.sqlite")) as db:
        assert db.execute("SELECT reason FROM rejected").fetchall() == [("not_recorded",)]
