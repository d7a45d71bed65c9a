"""``alerts resend`` and what ``doctor`` says of outboxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alert_parts import (
    CANARIES,
    Broker,
    OtlpReceiver,
    broker,
    entry,
    health,
    make_policy,
    receiver,
    sleeping_broker,
    wait_until,
)

from nae_monitor.alert import KafkaTail
from nae_monitor.alert.kafka import KafkaSink
from nae_monitor.alert.outbox import Outbox
from nae_monitor.health import Health
from nae_monitor.sink_settings import KafkaSettings

__all__ = ["broker", "health", "receiver", "sleeping_broker"]

Cli = Callable[..., Any]
Config = Callable[..., str]
BIG_BYTES = 1 << 28


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    """Three events: two wait, one was refused."""
    path = tmp_path / "o.sqlite"
    filled = Outbox(path, BIG_BYTES)
    filled.add([entry(n) for n in range(3)])
    filled.reject(2, "MessageSizeTooLargeError")
    filled.close()
    return path


def config_for(config: Config, broker: Broker, outbox: Path) -> str:
    sink = {"bootstrap": broker.bootstrap, "outbox": str(outbox)}
    return config(alert={"sinks": [{"kafka": sink}]}, privacy={"content": "hash"})


def sequences(broker: Broker) -> list[int]:
    tail = KafkaTail(broker.bootstrap, "nae.alerts", timeout_s=1.0)
    return sorted(alert.data["unmapped"]["nae.sequence"] for alert in tail)


def test_what_waits_and_what_was_refused_is_sent(
    cli: Cli, config: Config, broker: Broker, outbox: Path
) -> None:
    done = cli("alerts", "resend", "-c", config_for(config, broker, outbox), "--json")
    assert done.code == 0
    (said,) = done.objects
    counts = {name: said[name] for name in ("put_back", "delivered", "waiting", "refused")}
    assert counts == {"put_back": 1, "delivered": 3, "waiting": 0, "refused": 0}
    assert sequences(broker) == [0, 1, 2]


def test_refused_events_stay_where_they_are_not_asked_for(
    cli: Cli, config: Config, broker: Broker, outbox: Path
) -> None:
    path = config_for(config, broker, outbox)
    done = cli("alerts", "resend", "-c", path, "--no-refused")
    assert done.code == 1
    assert done.out.strip() == f"{outbox}: 2 sent, 0 waiting, 1 refused"


def test_without_a_broker_everything_stays_and_the_exit_code_says_so(
    cli: Cli, config: Config, sleeping_broker: Broker, outbox: Path
) -> None:
    path = config_for(config, sleeping_broker, outbox)
    done = cli("alerts", "resend", "-c", path, "--wait", "0.2", "--json")
    assert done.code == 1
    assert (done.objects[0]["delivered"], done.objects[0]["waiting"]) == (0, 3)


def test_a_running_monitor_sends_what_was_put_back(
    cli: Cli, config: Config, broker: Broker, outbox: Path, health: Health
) -> None:
    settings = KafkaSettings(broker.bootstrap, outbox=str(outbox))
    sink = KafkaSink(settings, make_policy(), health)
    wait_until(lambda: sink.stats()["delivered"] == 2)
    done = cli("alerts", "resend", "-c", config_for(config, broker, outbox))
    assert "a running monitor sends what waits" in done.out
    wait_until(lambda: sink.stats()["delivered"] == 3)
    assert sink.close(20)
    assert sequences(broker) == [0, 1, 2]


def test_what_a_damaged_outbox_still_holds_is_sent_under_the_present_privacy(
    cli: Cli, config: Config, broker: Broker, tmp_path: Path
) -> None:
    path = tmp_path / "o.sqlite"
    filled = Outbox(path, BIG_BYTES)
    filled.narrow("full", bytes)
    filled.add([entry(n, content="full") for n in range(400)])
    filled.close()
    data = bytearray(path.read_bytes())
    middle = len(data) // 4096 // 2 * 4096
    data[middle : middle + 4096 * 8] = b"\xa5" * (4096 * 8)
    path.write_bytes(data)
    fresh = Outbox(path, BIG_BYTES)
    (aside,) = fresh.moved_aside
    fresh.close()
    command = ("alerts", "resend", "-c", config_for(config, broker, path), "--from", aside)
    done = cli(*command, "--json")
    assert done.code == 0
    (said,) = done.objects
    assert 300 < said["salvaged"] == said["delivered"] < 400
    assert aside.read_bytes() == bytes(data)
    alerts = list(KafkaTail(broker.bootstrap, "nae.alerts", timeout_s=1.0))
    assert len(alerts) == said["salvaged"]
    assert not [name for name, canary in CANARIES.items() if canary in repr(alerts)]


def test_a_configuration_without_an_outbox_has_nothing_to_send(cli: Cli, config: Config) -> None:
    done = cli("alerts", "resend", "-c", config(alert={"sinks": ["console", {"otel": {}}]}))
    assert done.code == 2
    assert "no sink with an outbox" in done.err


def test_the_outbox_of_every_sink_is_told_and_sent(
    cli: Cli, config: Config, outbox: Path, receiver: OtlpReceiver, broker: Broker, tmp_path: Path
) -> None:
    other = tmp_path / "kafka.sqlite"
    filled = Outbox(other, BIG_BYTES)
    filled.add([entry(7)])
    filled.close()
    otel = {"endpoint": f"http://127.0.0.1:{receiver.port}", "outbox": str(outbox)}
    kafka = {"bootstrap": broker.bootstrap, "outbox": str(other)}
    path = config(alert={"sinks": ["console", {"otel": otel}, {"kafka": kafka}]})
    told = cli("doctor", "-c", path).out
    assert "sink otel outbox" in told
    assert "sink kafka outbox" in told
    assert "answered" not in told
    done = cli("alerts", "resend", "-c", path, "--json")
    assert done.code == 0, done.err
    assert [one["delivered"] for one in done.objects] == [3, 1]
    assert len(receiver.spans) == 3
    assert sequences(broker) == [7]


def test_the_doctor_tells_what_lies_in_an_outbox(
    cli: Cli, config: Config, sleeping_broker: Broker, outbox: Path
) -> None:
    aside = outbox.with_name("o.sqlite.corrupt-20260101T000000Z")
    aside.write_bytes(b"x")
    done = cli("doctor", "-c", config_for(config, sleeping_broker, outbox), "--json")
    found = [one for one in done.objects[0]["checks"] if one["name"] == "sink kafka outbox"]
    assert [one["state"] for one in found] == ["warning", "warning"]
    assert "2 waiting" in found[0]["message"]
    assert "refused: 1 MessageSizeTooLargeError" in found[0]["message"]
    assert f"--from {aside}" in found[1]["mend"]
