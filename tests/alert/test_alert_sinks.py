from __future__ import annotations

import io
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from alert_parts import CANARIES, KEY_ENV, Broker, OtlpReceiver, free_port, make_alert, wait_until
from rich.console import Console

from nae_monitor.alert import KafkaTail, Sinks, build_sinks
from nae_monitor.alert.sink import Sink
from nae_monitor.errors import ConfigurationError
from nae_monitor.health import Health
from nae_monitor.records import Alert
from nae_monitor.settings import PrivacySettings
from nae_monitor.sink_settings import (
    AlertSettings,
    JsonlSettings,
    KafkaSettings,
    OtelSettings,
    SinkSettings,
    WebhookSettings,
)


class ListSink:
    def __init__(self) -> None:
        self.alerts: list[Alert] = []

    def emit(self, alert: Alert) -> None:
        self.alerts.append(alert)

    def close(self, deadline_s: float) -> bool:
        return True

    def stats(self) -> Mapping[str, int]:
        return {"accepted": len(self.alerts)}


class BrokenSink(ListSink):
    def emit(self, alert: Alert) -> None:
        raise RuntimeError("no")

    def close(self, deadline_s: float) -> bool:
        raise RuntimeError("no")


class StuckSink(ListSink):
    def close(self, deadline_s: float) -> bool:
        threading.Event().wait(60)
        return True


def test_a_broken_sink_is_counted_and_stops_no_other(health: Health) -> None:
    good = ListSink()
    sinks = Sinks({"broken": BrokenSink(), "good": good}, health)
    for n in range(7):
        sinks.emit(make_alert(n))
    assert len(good.alerts) == 7
    assert health.counters()["failed.alert.broken.RuntimeError"] == 5
    assert health.counters()["alert.broken.dropped.circuit_open"] == 2
    assert not sinks.close(1)
    assert sinks.stats()["good"] == {"accepted": 7}


def test_a_sink_that_never_closes_does_not_hold_up_the_others(health: Health) -> None:
    assert not Sinks({"stuck": StuckSink(), "good": ListSink()}, health).close(0.1)


def test_every_sink_meets_the_protocol_and_two_of_a_kind_have_two_names(
    tmp_path: Path, health: Health
) -> None:
    settings = AlertSettings(
        (
            SinkSettings("console"),
            SinkSettings("jsonl", JsonlSettings(str(tmp_path / "a.jsonl"))),
            SinkSettings("jsonl", JsonlSettings(str(tmp_path / "b.jsonl"))),
            SinkSettings("otel"),
            SinkSettings("kafka", KafkaSettings("127.0.0.1:1", outbox=str(tmp_path / "o"))),
        )
    )
    console = Console(file=io.StringIO())
    sinks = build_sinks(settings, PrivacySettings(), health, console=console)
    assert list(sinks.stats()) == ["console", "jsonl", "jsonl#2", "otel", "kafka"]
    assert all(isinstance(sink, Sink) for sink in sinks._sinks.values())
    assert sinks.close(5)


def test_a_far_end_that_is_away_holds_up_no_other_sink(
    broker: Broker, receiver: OtlpReceiver, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAE_MONITOR_WEBHOOK_SECRET", "s")
    away = f"http://127.0.0.1:{free_port()}/"
    settings = AlertSettings(
        (
            SinkSettings("webhook", WebhookSettings(away)),
            SinkSettings("otel", OtelSettings(f"http://127.0.0.1:{receiver.port}")),
            SinkSettings("kafka", KafkaSettings(broker.bootstrap)),
        )
    )
    sinks = build_sinks(settings, PrivacySettings(), health)
    for number in range(30):
        sinks.emit(make_alert(number))
    wait_until(lambda: all(sinks.stats()[n]["delivered"] == 30 for n in ("otel", "kafka")))
    wait_until(lambda: sinks.stats()["webhook"]["accepted"] == 30)
    assert sinks.stats()["webhook"]["delivered"] == 0
    assert not sinks.close(1.0)
    assert sinks.stats()["webhook"]["outbox_events"] == 30


def test_all_problems_come_at_once(tmp_path: Path, health: Health) -> None:
    (tmp_path / "file").write_text("")
    settings = AlertSettings(
        (
            SinkSettings("jsonl", JsonlSettings(str(tmp_path / "file" / "a.jsonl"))),
            SinkSettings("otel", OtelSettings("nowhere")),
            SinkSettings("kafka", KafkaSettings("h:0", "bad topic")),
            SinkSettings("kafka", KafkaSettings("h:1", outbox=str(tmp_path / "file" / "o"))),
            SinkSettings("jsonl"),
        )
    )
    with pytest.raises(ConfigurationError) as caught:
        build_sinks(settings, PrivacySettings(), health)
    assert len(caught.value.problems) == 6
    assert {p.where.file.split("]")[0][-1] for p in caught.value.problems} == set("01234")


def all_sinks(tmp_path: Path, broker: Broker, receiver: OtlpReceiver) -> AlertSettings:
    return AlertSettings(
        (
            SinkSettings("console"),
            SinkSettings("jsonl", JsonlSettings(str(tmp_path / "alerts.jsonl"))),
            SinkSettings("otel", OtelSettings(f"http://127.0.0.1:{receiver.port}")),
            SinkSettings(
                "kafka", KafkaSettings(broker.bootstrap, outbox=str(tmp_path / "outbox.sqlite"))
            ),
        )
    )


def at_rest(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("content", ["hash", "none"])
def test_no_content_leaves_through_any_sink_log_or_file(
    content: Any,
    tmp_path: Path,
    sleeping_broker: Broker,
    receiver: OtlpReceiver,
    health: Health,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_AND_EVENT")
    monkeypatch.setenv(*next(iter(KEY_ENV.items())))
    out = io.StringIO()
    sinks = build_sinks(
        all_sinks(tmp_path, sleeping_broker, receiver),
        PrivacySettings(content=content),
        health,
        console=Console(file=out, width=200),
    )
    sinks.emit(make_alert(0))
    wait_until(lambda: sinks.stats()["kafka"]["accepted"] == 1)
    everything = at_rest(tmp_path)  # outboxes among it
    sleeping_broker.start()
    assert sinks.close(30)
    (event,) = KafkaTail(sleeping_broker.bootstrap, "nae.alerts", timeout_s=1.0)
    everything += at_rest(tmp_path)
    everything += b"".join(r.SerializeToString() for r in receiver.requests)
    everything += (repr(event) + out.getvalue() + caplog.text).encode()
    everything += repr((sinks.stats(), health.counters())).encode()
    assert len(receiver.spans) == 1
    assert b"rule-1" in everything
    assert not [name for name, canary in CANARIES.items() if canary.encode() in everything]
    assert KEY_ENV["NAE_MONITOR_HMAC_KEY"].encode() not in everything


def test_with_full_the_same_places_do_show_content(
    tmp_path: Path, broker: Broker, receiver: OtlpReceiver, health: Health
) -> None:
    out = io.StringIO()
    sinks = build_sinks(
        all_sinks(tmp_path, broker, receiver),
        PrivacySettings(content="full"),
        health,
        console=Console(file=out, width=200),
    )
    sinks.emit(make_alert(0))
    assert sinks.close(30)
    (event,) = KafkaTail(broker.bootstrap, "nae.alerts", timeout_s=1.0)
    places = [repr(event), (tmp_path / "alerts.jsonl").read_text()]
    assert all(canary in place for place in places for canary in CANARIES.values())
    assert CANARIES["explanation"] in out.getvalue()


def test_two_sinks_with_one_outbox_stop_the_start(tmp_path: Path, health: Health) -> None:
    file = str(tmp_path / "o.sqlite")
    settings = AlertSettings(
        (
            SinkSettings("webhook", WebhookSettings("http://127.0.0.1:1/a", outbox=file)),
            SinkSettings("kafka", KafkaSettings("127.0.0.1:1", outbox=file)),
        )
    )
    with pytest.raises(ConfigurationError) as caught:
        build_sinks(settings, PrivacySettings(content="none"), health)
    assert "the outbox is that of alert.sinks[0].webhook" in str(caught.value)


@pytest.mark.parametrize("options", [None, OtelSettings(), OtelSettings("http://127.0.0.1:4317")])
def test_a_disabled_sdk_stops_the_start_of_an_otel_sink(
    options: OtelSettings | None, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "True")
    settings = AlertSettings((SinkSettings("otel", options),))
    with pytest.raises(ConfigurationError, match="OTEL_SDK_DISABLED is set"):
        build_sinks(settings, PrivacySettings(content="none"), health)
