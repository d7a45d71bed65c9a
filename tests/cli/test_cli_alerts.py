"""``alerts tail``: readable alerts from a file, followed over a rotation."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alert_parts import Broker, broker, free_port, make_alert, make_policy
from kafka_gate import Gate

from nae_monitor.alert.kafka import KafkaSink
from nae_monitor.health import Health
from nae_monitor.sink_settings import KafkaSaslSettings, KafkaSettings

__all__ = ["broker"]
PASSWORD = "canary-password-zebra"

Cli = Callable[..., Any]
Config = Callable[..., str]


@pytest.fixture
def alerts(cli: Cli, config: Config, prompts: Path, tmp_path: Path) -> Path:
    """A file that the jsonl sink wrote."""
    path = tmp_path / "alerts.jsonl"
    sinks = {"sinks": [{"jsonl": str(path)}]}
    command = ("generate", "-c", config(alert=sinks), "-p", prompts, "--max-new-tokens", "6")
    assert cli(*command).code == 0
    return path


def test_an_alert_is_one_readable_line(cli: Cli, alerts: Path) -> None:
    done = cli("alerts", "tail", alerts)
    lines = done.out.splitlines()
    assert len(lines) == len(alerts.read_text().splitlines()) >= 2
    assert all(" LOW Anything at all [anything] request " in line for line in lines)


def test_json_is_the_whole_event(cli: Cli, alerts: Path) -> None:
    done = cli("alerts", "tail", alerts, "--json")
    assert done.objects[0]["specversion"] == "1.0"
    assert done.objects[0]["data"]["class_uid"] == 2004


def test_what_is_no_alert_is_counted_and_skipped(cli: Cli, alerts: Path) -> None:
    events = len(alerts.read_text().splitlines())
    with alerts.open("a") as file:
        file.write('{"half": \n[]\n')
    done = cli("alerts", "tail", alerts)
    assert done.code == 0
    assert "note: 2 entries are no alert events" in done.err
    assert len(done.out.splitlines()) == events


def test_an_event_cannot_drive_the_terminal(cli: Cli, alerts: Path) -> None:
    event = json.loads(alerts.read_text().splitlines()[0])
    event["data"]["finding_info"]["title"] = "\x1b[2Jgone\nerror: forged"
    alerts.write_text(json.dumps(event) + "\n")
    done = cli("alerts", "tail", alerts)
    assert "\x1b" not in done.out
    assert len(done.out.splitlines()) == 1


def test_following_goes_on_over_half_lines_and_a_rotation(alerts: Path) -> None:
    first = alerts.read_text().splitlines()[0] + "\n"
    alerts.write_text(first)
    command = [Path(sys.executable).with_name("nae-monitor"), "alerts", "tail", alerts, "-f"]
    with subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        with alerts.open("a") as file:
            file.write(first[:50])
            file.flush()
            file.write(first[50:])
        assert process.stdout.readline()
        alerts.rename(alerts.with_name("alerts.jsonl.1"))
        alerts.write_text(first)
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert said.strip() == "interrupted"


@pytest.mark.live
def test_alerts_are_read_from_a_topic(
    cli: Cli, config: Config, prompts: Path, broker: Broker, tmp_path: Path
) -> None:
    outbox = str(tmp_path / "outbox.sqlite")
    sinks = [{"kafka": {"bootstrap": broker.bootstrap, "topic": "t", "outbox": outbox}}]
    command = ("generate", "-c", config(alert={"sinks": sinks}), "-p", prompts)
    assert cli(*command, "--max-new-tokens", "6").code == 0
    done = cli("alerts", "tail", "--kafka", broker.bootstrap, "--topic", "t")
    assert done.code == 0, done.err
    assert done.out.count(" LOW Anything at all [anything] request ") >= 2


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A broker that asks for a password, which the environment has."""
    broker = Broker(free_port(), advertised=free_port())
    broker.start()
    assert broker.advertised is not None
    gate = Gate(broker.port, broker.advertised, users={"nae": PASSWORD}, mechanism="SCRAM-SHA-512")
    gate.start()
    yield gate
    gate.stop()
    broker.kill()


def test_a_topic_behind_a_password_is_read_with_a_configuration(
    gate: Gate,
    cli: Cli,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nae_monitor.cli.alerts_source.KAFKA_QUIET_S", 1.0)
    monkeypatch.setenv("KAFKA_USER", "nae")
    monkeypatch.setenv("KAFKA_WORD", PASSWORD)
    names = {"username_env": "KAFKA_USER", "password_env": "KAFKA_WORD"}
    sasl = {"mechanism": "SCRAM-SHA-512", **names}
    options = {"bootstrap": f"127.0.0.1:{gate.port}", "topic": "t", "sasl": sasl}
    path = config(alert={"sinks": [{"kafka": {**options, "outbox": str(tmp_path / "o.sqlite")}}]})
    sink = KafkaSink(
        KafkaSettings(
            options["bootstrap"],
            "t",
            outbox=str(tmp_path / "p.sqlite"),
            sasl=KafkaSaslSettings("SCRAM-SHA-512", "KAFKA_USER", "KAFKA_WORD"),
        ),
        make_policy(),
        Health(),
    )
    sink.emit(make_alert(3))
    assert sink.close(60)
    read = cli("alerts", "tail", "--config", path, "--json")
    assert read.code == 0, read.err
    assert [one["data"]["unmapped"]["nae.sequence"] for one in read.objects] == [3]
    taken = cli("alerts", "import", "--config", path, "--store", tmp_path / "s.sqlite", "--json")
    assert taken.objects == [{"read": 1, "new": 1, "forgotten": 0}]
    monkeypatch.setenv("KAFKA_WORD", "canary-wrong")
    refused = cli("alerts", "tail", "--config", path)
    assert refused.code == 2
    assert "refuses the user or the password" in refused.err
    assert "canary-wrong" not in refused.err


@pytest.mark.parametrize(
    ("sinks", "said"),
    [
        (["console"], "0 kafka sinks"),
        ([{"kafka": {"bootstrap": f"h:{n}"}} for n in (1, 2)], "2 kafka sinks"),
    ],
)
def test_a_configuration_must_name_one_topic_to_read(
    sinks: list[Any], said: str, cli: Cli, config: Config
) -> None:
    done = cli("alerts", "tail", "--config", config(alert={"sinks": sinks}))
    assert done.code == 2
    assert said in done.err


@pytest.mark.parametrize(
    ("bootstrap", "said"),
    [("127.0.0.1:9", "127.0.0.1:9 does not answer"), ("nowhere", "which is no HOST:PORT")],
)
def test_a_broker_that_is_away_is_no_empty_topic(bootstrap: str, said: str, cli: Cli) -> None:
    done = cli("alerts", "tail", "--kafka", bootstrap)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.splitlines()) == 1
