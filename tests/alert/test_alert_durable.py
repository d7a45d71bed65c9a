"""What a sink with an outbox does when the disk, the file or the event is at fault; heartbeats."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alert_parts import Broker, make_alert, make_policy, wait_until
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
from cloudevents.core.formats.json import JSONFormat
from kafka import KafkaConsumer
from test_alert_event import ocsf_validator

from nae_monitor.alert import event
from nae_monitor.alert.kafka import KafkaSink
from nae_monitor.alert.kafka_side_events import (
    BYTES_HEADER,
    HEARTBEAT_TYPE,
    REASON_HEADER,
    TOPIC_HEADER,
)
from nae_monitor.alert.outbox import Outbox
from nae_monitor.alert.tail import KafkaTail
from nae_monitor.health import Health
from nae_monitor.sink_settings import KafkaSettings


def sink_for(broker: Broker, tmp_path: Path, health: Health, **options: Any) -> KafkaSink:
    settings = KafkaSettings(broker.bootstrap, outbox=str(tmp_path / "o.sqlite"), **options)
    return KafkaSink(settings, make_policy(), health, delivery_timeout_s=3.0)


def records(broker: Broker, topic: str, count: int) -> list[Any]:
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=broker.bootstrap,
        api_version=(2, 6),
        auto_offset_reset="earliest",
        group_id=None,
    )
    found: list[Any] = []

    def enough() -> bool:
        for batch in consumer.poll(timeout_ms=200).values():
            found.extend(batch)
        return len(found) >= count

    try:
        wait_until(enough)
    finally:
        consumer.close()
    return found


def test_a_full_disk_is_counted_and_everything_goes_out_when_there_is_room_again(
    broker: Broker, tmp_path: Path, health: Health
) -> None:
    sink = sink_for(broker, tmp_path, health)
    sink.emit(make_alert(0))
    wait_until(lambda: sink.stats()["delivered"] == 1)
    outbox = sink._outbox
    assert outbox is not None
    (pages,) = outbox._db.execute("PRAGMA page_count").fetchone()
    outbox._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then answers as on a full disk
    for number in range(1, 400):
        sink.emit(make_alert(number, title="t" * 1000))
    wait_until(lambda: sink.stats().get("retried.OperationalError"))
    assert sink.stats()["delivered"] < 400
    outbox._db.execute("PRAGMA max_page_count = 1000000")
    wait_until(lambda: sink.stats()["delivered"] == 400)
    assert sink.close(20)
    tail = KafkaTail(broker.bootstrap, "nae.alerts", timeout_s=1.0)
    assert {a.data["unmapped"]["nae.sequence"] for a in tail} == set(range(400))


def test_a_file_that_is_damaged_at_work_is_replaced_and_the_loss_is_said(
    sleeping_broker: Broker, tmp_path: Path, health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    sink = sink_for(sleeping_broker, tmp_path, health)
    for number in range(600):
        sink.emit(make_alert(number))
    wait_until(lambda: sink.stats()["accepted"] == 600)
    outbox = sink._outbox
    assert outbox is not None
    with closing(sqlite3.connect(outbox.path)) as other:
        wait_until(lambda: other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
    data = bytearray(outbox.path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    outbox.path.write_bytes(data)
    sleeping_broker.start()
    wait_until(lambda: sink.stats().get("outbox_damaged"))
    sink.emit(make_alert(600))
    wait_until(lambda: sink.stats()["delivered"] >= 1)
    sink.close(20)
    stats = sink.stats()
    lost = stats.get("dropped.outbox_damaged", 0)  # what was on the wire is in memory still
    assert stats["delivered"] + lost == stats["accepted"] == 601
    (aside,) = tmp_path.glob("o.sqlite.corrupt-*Z")
    assert str(aside) in caplog.text
    tail = KafkaTail(sleeping_broker.bootstrap, "nae.alerts", timeout_s=1.0)
    assert 600 in {a.data["unmapped"]["nae.sequence"] for a in tail}


def test_alerts_committed_just_before_the_damage_showed_are_counted_as_lost(
    sleeping_broker: Broker, tmp_path: Path, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = sink_for(sleeping_broker, tmp_path, health)
    wait_until(lambda: sink._outbox is not None)
    damage = sqlite3.DatabaseError("damaged")
    damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT

    def transmit(outbox: Outbox) -> None:
        if outbox.events:
            raise damage

    monkeypatch.setattr(sink, "_transmit", transmit)
    for number in range(50):
        sink.emit(make_alert(number))
    wait_until(lambda: sink.stats().get("dropped.outbox_damaged") == 50)
    assert (sink.stats()["accepted"], sink.stats()["pending"]) == (50, 0)
    sink.close(1)


def test_what_is_too_large_goes_to_the_dead_letter_topic_without_its_evidences(
    broker: Broker, tmp_path: Path, health: Health
) -> None:
    sink = sink_for(broker, tmp_path, health, dead_letter_topic="nae.dead")
    sink.emit(make_alert(0))
    sink.emit(make_alert(1, title="x" * 2_000_000))
    wait_until(lambda: sink.stats().get("dead_lettered") == 1)
    assert not sink.close(20)  # one was not delivered
    (record,) = records(broker, "nae.dead", 1)
    headers = dict(record.headers)
    assert headers[REASON_HEADER] == b"MessageSizeTooLargeError"
    assert headers[TOPIC_HEADER] == b"nae.alerts"
    assert int(headers[BYTES_HEADER]) > 2_000_000
    assert headers["ce_subject"] == b"r1"
    finding = json.loads(record.value)
    ocsf_validator().validate(finding)
    assert (finding["evidences"], len(finding["finding_info"]["title"])) == ([], 256)
    stats = sink.stats()
    assert (stats["delivered"], stats["dropped.refused"], stats["pending"]) == (1, 1, 0)


def test_a_heartbeat_is_a_cloud_event_beside_the_alerts(
    broker: Broker, tmp_path: Path, health: Health
) -> None:
    health.count("tokens.seen", 7)
    sink = sink_for(broker, tmp_path, health, heartbeat_s=0.2)
    wait_until(lambda: sink.stats().get("heartbeats", 0) >= 2)
    sink.close(20)
    record = records(broker, "nae.alerts", 2)[1]
    message = KafkaMessage(dict(record.headers), record.key, record.value)
    found = from_kafka_event(message, JSONFormat())
    assert found.get_type() == HEARTBEAT_TYPE
    data = found.get_data()
    assert isinstance(data, dict)
    assert (data["interval_s"], data["counters"]["tokens.seen"]) == (0.2, 7)
    assert (data["switched_off"], data["sink"]["outbox_events"]) == ([], 0)
    assert list(KafkaTail(broker.bootstrap, "nae.alerts", timeout_s=1.0)) == []  # no alert


def test_a_heartbeat_that_cannot_be_sent_leaves_nothing_behind(
    sleeping_broker: Broker, tmp_path: Path, health: Health
) -> None:
    sink = sink_for(sleeping_broker, tmp_path, health, heartbeat_s=0.1)
    wait_until(lambda: any(name.startswith("retried.") for name in sink.stats()))
    assert sink.stats()["pending"] == 0
    assert sink.close(20)


def test_sequences_go_on_growing_after_a_restart_with_the_clock_put_back(
    sleeping_broker: Broker, tmp_path: Path, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = time.time_ns() + 10**15
    outbox = Outbox(tmp_path / "o.sqlite", 1 << 20)
    outbox.keep_fact("sequence_epoch", ahead)
    outbox.close()
    monkeypatch.setattr(event, "_EPOCH", event._Epoch())
    sink = sink_for(sleeping_broker, tmp_path, health)
    assert event.sequence_text(0) > f"{ahead:020d}.999999999999"
    sink.close(1)
    outbox = Outbox(tmp_path / "o.sqlite", 1 << 20)
    assert outbox.fact("sequence_epoch") == ahead + 1
    outbox.close()


def test_the_outbox_is_among_the_counts_of_its_sink(
    sleeping_broker: Broker, tmp_path: Path, health: Health
) -> None:
    sink = sink_for(sleeping_broker, tmp_path, health)
    for number in range(3):
        sink.emit(make_alert(number))
    wait_until(lambda: sink.stats()["outbox_events"] == 3)
    assert sink.stats()["outbox_bytes"] > 3000
    sink._oldest_unix_ns = time.time_ns() - 90 * 10**9
    assert sink.stats()["outbox_oldest_s"] in (90, 91)
    sink._oldest_unix_ns = time.time_ns() + 10**12  # the clock went back since
    assert sink.stats()["outbox_oldest_s"] == 0
    sink.close(0.5)


def test_a_damaged_file_that_no_fresh_one_replaces_at_once_is_replaced_later(
    sleeping_broker: Broker, tmp_path: Path, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = sink_for(sleeping_broker, tmp_path, health)
    wait_until(lambda: sink._outbox is not None)
    first = sink._outbox
    assert first is not None
    damage = sqlite3.DatabaseError("damaged")
    damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    refusals = [damage]

    def renew() -> Path:
        raise OSError("no space for a fresh one")

    def refresh() -> None:
        if first.events and refusals:
            raise refusals.pop()

    monkeypatch.setattr(first, "renew", renew)
    monkeypatch.setattr(first, "refresh", refresh)
    sink.emit(make_alert(0))
    wait_until(lambda: sink._outbox not in (None, first))
    sleeping_broker.start()
    sink.emit(make_alert(1))
    wait_until(lambda: sink.stats()["delivered"] >= 1)
    assert sink.close(20) is False
    assert sink.stats()["failed.OSError"] == 1


def test_rows_that_cannot_be_read_are_counted_and_set_aside(
    sleeping_broker: Broker, tmp_path: Path, health: Health
) -> None:
    sink = sink_for(sleeping_broker, tmp_path, health)
    sink.emit(make_alert(0))
    wait_until(lambda: sink.stats()["accepted"] == 1)
    sink.close(1)
    with closing(sqlite3.connect(tmp_path / "o.sqlite")) as db, db:
        db.execute("UPDATE pending SET headers = x'ff'")
    sleeping_broker.start()
    again = sink_for(sleeping_broker, tmp_path, health)
    again.emit(make_alert(1))
    wait_until(lambda: again.stats()["delivered"] == 1)
    again.close(20)
    assert again.stats()["dropped.unreadable"] == 1
