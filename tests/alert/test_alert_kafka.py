from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from alert_parts import Broker, entry, make_alert, make_policy, wait_until

from nae_monitor.alert import build_sinks
from nae_monitor.alert.event import occurrence_id, to_event
from nae_monitor.alert.kafka import KafkaSink
from nae_monitor.alert.kafka_address import check, outbox_path
from nae_monitor.alert.outbox import Outbox
from nae_monitor.alert.outbox_rows import Entry
from nae_monitor.alert.tail import KafkaTail, consume_kafka
from nae_monitor.errors import ConfigurationError, InputDataError, Mark
from nae_monitor.health import Health
from nae_monitor.records import Severity
from nae_monitor.settings import PrivacySettings
from nae_monitor.sink_settings import AlertSettings, KafkaSettings, SinkSettings

TOPIC = "nae.alerts"
BIG_BYTES = 64 * 1024 * 1024


def sink_for(
    broker: Broker, outbox: Path, health: Health, *, delivery_timeout_s: float = 3.0, **options: Any
) -> KafkaSink:
    settings = KafkaSettings(broker.bootstrap, TOPIC, outbox=str(outbox), **options)
    return KafkaSink(settings, make_policy(), health, delivery_timeout_s=delivery_timeout_s)


def read(broker: Broker, timeout_s: float = 1.0) -> list[int]:
    tail = KafkaTail(broker.bootstrap, TOPIC, timeout_s=timeout_s, reorder_s=0.2)
    return [alert.data["unmapped"]["nae.sequence"] for alert in tail]


def waiting(path: Path) -> list[int]:
    with sqlite3.connect(path) as db:
        return [row[0] for row in db.execute("SELECT row_id FROM pending")]


def test_delivers_in_order_with_the_headers_and_key_of_the_contract(
    broker: Broker, tmp_path: Path, health: Health
) -> None:
    sink = sink_for(broker, tmp_path / "o.sqlite", health)
    alerts = [make_alert(n) for n in range(300)]
    for alert in alerts:
        sink.emit(alert)
    assert sink.close(20)
    counts = sink.stats()
    assert (counts["accepted"], counts["delivered"], counts["pending"]) == (300, 300, 0)
    assert (counts["outbox_events"], counts["outbox_bytes"]) == (0, 0)
    found = list(consume_kafka(broker.bootstrap, TOPIC, timeout_s=1.0))
    assert [a.id for a in found] == [occurrence_id(a) for a in alerts]
    policy = make_policy()
    expected = to_event(policy.redact(alerts[7]), policy)
    assert found[7].attributes == {k: str(v) for k, v in expected.attributes.items()}
    assert (found[7].data, found[7].key) == (expected.data, "session-1")
    assert waiting(tmp_path / "o.sqlite") == []


def test_a_group_goes_on_where_it_was(broker: Broker, tmp_path: Path, health: Health) -> None:
    for n in range(2):
        sink = sink_for(broker, tmp_path / "o.sqlite", health)
        sink.emit(make_alert(n))
        assert sink.close(20)
        tail = KafkaTail(
            broker.bootstrap, TOPIC, group="readers", timeout_s=1.0, session_timeout_s=2.0
        )
        found = list(tail)
        assert [a.data["unmapped"]["nae.sequence"] for a in found] == [n]


def test_alerts_of_a_start_without_broker_are_delivered_when_it_comes(
    sleeping_broker: Broker, tmp_path: Path, health: Health
) -> None:
    sink = sink_for(sleeping_broker, tmp_path / "o.sqlite", health)
    for n in range(20):
        sink.emit(make_alert(n))
    wait_until(lambda: sink.stats()["accepted"] == 20)
    wait_until(lambda: any(name.startswith("retried.") for name in sink.stats()))
    assert sink.stats()["pending"] == 20
    sleeping_broker.start()
    wait_until(lambda: sink.stats()["delivered"] == 20)
    assert sink.close(20)
    assert read(sleeping_broker) == list(range(20))


def test_every_alert_without_an_answer_is_sent_again_after_the_broker_was_killed(
    broker: Broker, tmp_path: Path, health: Health
) -> None:
    sink = sink_for(broker, tmp_path / "o.sqlite", health, delivery_timeout_s=1.0)
    for n in range(50):
        sink.emit(make_alert(n))
    wait_until(lambda: sink.stats()["delivered"] == 50)
    broker.kill()  # and with it the topic: what was acknowledged is the broker's to lose
    for n in range(50, 120):
        sink.emit(make_alert(n))
    wait_until(lambda: sink.stats()["accepted"] == 120)
    # The new broker has to be asked for its topics first: this one acknowledges, and forgets,
    # what it is sent for a topic it does not know.
    wait_until(lambda: any(name.startswith("retried.") for name in sink.stats()))
    assert len(waiting(tmp_path / "o.sqlite")) == 70
    broker.start()
    wait_until(lambda: sink.stats()["delivered"] == 120, 60)
    assert sink.close(20)
    assert set(range(50, 120)) <= set(read(broker))


def test_a_producer_that_goes_quiet_is_replaced(
    broker: Broker, tmp_path: Path, health: Health
) -> None:
    assert broker.process is not None
    sink = sink_for(broker, tmp_path / "o.sqlite", health, delivery_timeout_s=0.6)
    sink.emit(make_alert(0))
    wait_until(lambda: sink.stats()["delivered"] == 1)
    broker.process.send_signal(signal.SIGSTOP)  # connected, and never answers
    for n in range(1, 30):
        sink.emit(make_alert(n))
    wait_until(lambda: any(name.startswith("retried.") for name in sink.stats()))
    broker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: sink.stats()["delivered"] == 30, 60)
    assert sink.close(20)
    assert read(broker) == list(range(30))  # repeats dropped by source and id


EMITTER = """
import sys, time
from pathlib import Path
from alert_parts import Broker, make_alert
from test_alert_kafka import sink_for
from nae_monitor.health import Health
sink = sink_for(Broker(int(sys.argv[1])), Path(sys.argv[2]), Health())
for n in range(40):
    sink.emit(make_alert(n))
while sink.stats()["accepted"] < 40:
    time.sleep(0.01)
print("accepted", flush=True)
time.sleep(600)
"""


def test_what_a_killed_emitter_had_accepted_is_delivered_by_the_next_process(
    sleeping_broker: Broker, tmp_path: Path, health: Health
) -> None:
    outbox = tmp_path / "o.sqlite"
    emitter = subprocess.Popen(
        [sys.executable, "-c", EMITTER, str(sleeping_broker.port), str(outbox)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert emitter.stdout is not None
    assert emitter.stdout.readline() == b"accepted\n"
    emitter.kill()
    emitter.wait()
    sleeping_broker.start()
    sink = sink_for(sleeping_broker, outbox, health)
    assert sink.stats()["recovered"] == 40
    assert sink.close(20)
    assert read(sleeping_broker) == list(range(40))


def test_a_forked_child_sends_through_the_sink_it_inherited(
    broker: Broker, tmp_path: Path, health: Health
) -> None:
    sink = sink_for(broker, tmp_path / "o.sqlite", health)
    sink.emit(make_alert(0))
    wait_until(lambda: sink.stats()["delivered"] == 1)

    def child() -> None:
        sink.emit(make_alert(1))
        assert sink.close(20)
        os._exit(0 if sink.stats()["delivered"] == 1 else 3)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    sink.emit(make_alert(2))
    assert sink.close(20)
    assert sorted(read(broker)) == [0, 1, 2]


def test_a_child_forked_in_the_middle_of_commits_can_use_its_outbox(tmp_path: Path) -> None:
    """SQLite's own mutex, held by another thread at the fork, would hang the child."""
    outbox, stop = Outbox(tmp_path / "o.sqlite", BIG_BYTES), threading.Event()

    def commit() -> None:
        while not stop.is_set():
            outbox.add(events(Severity.LOW))

    def child() -> None:
        Outbox(tmp_path / "child.sqlite", BIG_BYTES).add(events(Severity.LOW))
        os._exit(0)

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        for _ in range(25):
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join(30)
            hangs = process.is_alive()
            process.kill()
            assert not hangs
    finally:
        stop.set()
        thread.join()


def test_an_event_no_broker_takes_is_set_aside_and_the_rest_goes_on(
    broker: Broker, tmp_path: Path, health: Health
) -> None:
    sink = sink_for(broker, tmp_path / "o.sqlite", health)
    sink.emit(make_alert(0))
    sink.emit(make_alert(1, title="x" * 2_000_000))
    sink.emit(make_alert(2))
    assert not sink.close(20)
    assert sink.stats()["dropped.refused"] == 1
    assert read(broker) == [0, 2]
    with sqlite3.connect(tmp_path / "o.sqlite") as db:
        (reason,) = db.execute("SELECT reason FROM rejected").fetchone()
    assert reason == "MessageSizeTooLargeError"


def test_closing_without_a_broker_returns_and_keeps_every_alert(
    sleeping_broker: Broker, tmp_path: Path, health: Health
) -> None:
    sink = sink_for(sleeping_broker, tmp_path / "o.sqlite", health)
    for n in range(500):
        sink.emit(make_alert(n))
    assert not sink.close(0.5)
    wait_until(lambda: len(waiting(tmp_path / "o.sqlite")) == 500)


@pytest.mark.parametrize("bootstrap", ["", "nowhere", "host:0", "host:99999", "a:1,,b:2", "h:x"])
def test_an_impossible_bootstrap_stops_the_start(
    bootstrap: str, tmp_path: Path, health: Health
) -> None:
    settings = KafkaSettings(bootstrap, outbox=str(tmp_path / "o.sqlite"))
    with pytest.raises(ConfigurationError, match="no HOST:PORT"):
        build_sinks(AlertSettings((SinkSettings("kafka", settings),)), PrivacySettings(), health)
    assert not list(tmp_path.iterdir())


def test_an_impossible_topic_is_a_problem() -> None:
    assert not check(KafkaSettings("[::1]:9092,h:1", "nae.alerts"), Mark("here"))
    assert check(KafkaSettings("h:1", "no spaces"), Mark("here"))


def test_a_file_that_is_no_outbox_stops_the_start(tmp_path: Path, health: Health) -> None:
    path = tmp_path / "o.sqlite"
    path.write_text("not a database, but long enough to be taken for a broken one" * 20)
    settings = KafkaSettings("127.0.0.1:1", outbox=str(path))
    with pytest.raises(ConfigurationError, match="outbox cannot be opened"):
        build_sinks(AlertSettings((SinkSettings("kafka", settings),)), PrivacySettings(), health)


def test_the_default_outbox_differs_by_brokers_and_topic() -> None:
    settings = [KafkaSettings("a:1"), KafkaSettings("b:1"), KafkaSettings("a:1", "t")]
    assert len({outbox_path(s) for s in settings}) == 3


def events(*severities: Severity) -> list[Entry]:
    return [entry(n, severity=severity) for n, severity in enumerate(severities)]


def test_a_second_process_takes_its_own_file_and_the_next_start_adopts_it(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite"
    first, second = Outbox(path, BIG_BYTES), Outbox(path, BIG_BYTES)
    assert (first.path.name, second.path.name) == ("o.sqlite", "o.1.sqlite")
    first.add(events(Severity.LOW))
    second.add(events(Severity.LOW, Severity.HIGH))
    first.close()
    second.close()
    third = Outbox(path, BIG_BYTES)
    assert (third.recovered, third.events) == (3, 3)
    assert (path.stat().st_mode & 0o777) == 0o600
    third.close()


def test_a_disk_the_outbox_cannot_write_keeps_alerts_in_memory(
    sleeping_broker: Broker, tmp_path: Path, health: Health
) -> None:
    sink = sink_for(sleeping_broker, tmp_path / "o.sqlite", health)
    with sqlite3.connect(tmp_path / "o.sqlite") as other:
        other.execute("BEGIN EXCLUSIVE")  # every commit of the sink fails
        sink.emit(make_alert(0))
        wait_until(lambda: sink.stats().get("retried.OperationalError"))
        assert sink.stats()["accepted"] == 0
        other.rollback()
    wait_until(lambda: sink.stats()["accepted"] == 1)
    assert not sink.close(0.3)


def test_what_is_no_alert_on_the_topic_is_skipped_and_counted(
    broker: Broker, tmp_path: Path, health: Health
) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap, api_version=(2, 6), enable_idempotence=False
    )
    for value in (b"\xff", b"[" * 100_000, b"{}", None):
        producer.send(TOPIC, key=b"k", value=value, headers=[("ce_id", b"\xff")])
    producer.close()
    sink = sink_for(broker, tmp_path / "o.sqlite", health)
    sink.emit(make_alert(0))
    assert sink.close(20)
    tail = KafkaTail(broker.bootstrap, TOPIC, timeout_s=1.0)
    assert len(list(tail)) == 1
    assert tail.skipped == 4


def test_reading_without_a_broker_is_an_input_error(sleeping_broker: Broker) -> None:
    tail = KafkaTail(sleeping_broker.bootstrap, TOPIC, timeout_s=0.2, session_timeout_s=0.3)
    with pytest.raises(InputDataError, match="no broker"):
        list(tail)
