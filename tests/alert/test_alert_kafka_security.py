"""TLS, passwords and closed topics: clear at the start, counted later, secrets nowhere."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from alert_parts import Broker, free_port, make_alert, make_policy, wait_until
from kafka_gate import TOPIC_AUTHORIZATION_FAILED, UNKNOWN_TOPIC, Gate

from nae_monitor.alert import build_sinks, kafka_probe
from nae_monitor.alert.kafka import KafkaSink
from nae_monitor.alert.kafka_security import problems_of_security, security
from nae_monitor.alert.tail import KafkaTail
from nae_monitor.errors import ConfigurationError, Mark
from nae_monitor.health import Health
from nae_monitor.settings import PrivacySettings, Settings
from nae_monitor.sink_settings import (
    AlertSettings,
    KafkaSaslSettings,
    KafkaSettings,
    KafkaTlsSettings,
    SinkSettings,
)

USER, PASSWORD = "nae", "canary-password-zebra"
SASL = KafkaSaslSettings("PLAIN", "TEST_KAFKA_USER", "TEST_KAFKA_PASSWORD")
HERE = Mark("here")


@pytest.fixture
def gate(broker_behind_gate: Broker) -> Iterator[Gate]:
    assert broker_behind_gate.advertised is not None
    gate = Gate(broker_behind_gate.port, broker_behind_gate.advertised)
    gate.start()
    yield gate
    gate.stop()


@pytest.fixture
def broker_behind_gate() -> Iterator[Broker]:
    broker = Broker(free_port(), advertised=free_port())
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SASL.username_env, USER)
    monkeypatch.setenv(SASL.password_env, PASSWORD)


def use_tls(gate: Gate, authority: trustme.CA) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    gate.context = context


def settings_for(gate: Gate, tmp_path: Path, **options: object) -> KafkaSettings:
    settings = KafkaSettings(f"127.0.0.1:{gate.port}", outbox=str(tmp_path / "o.sqlite"))
    return replace(settings, **options)  # type: ignore[arg-type]


def refusal(settings: KafkaSettings, health: Health) -> str:
    with pytest.raises(ConfigurationError) as caught:
        build_sinks(AlertSettings((SinkSettings("kafka", settings),)), PrivacySettings(), health)
    assert [problem.where.file for problem in caught.value.problems] == ["alert.sinks[0].kafka"]
    return str(caught.value)


@pytest.mark.usefixtures("secrets")
def test_alerts_go_over_tls_with_a_password_that_stands_nowhere(
    gate: Gate,
    broker_behind_gate: Broker,
    authority: trustme.CA,
    ca_file: str,
    tmp_path: Path,
    health: Health,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    use_tls(gate, authority)
    gate.users = {USER: PASSWORD}
    settings = settings_for(gate, tmp_path, tls=KafkaTlsSettings(ca_file), sasl=SASL)
    sinks = build_sinks(
        AlertSettings((SinkSettings("kafka", settings),)), PrivacySettings(), health
    )
    for number in range(5):
        sinks.emit(make_alert(number))
    wait_until(lambda: sinks.stats()["kafka"]["delivered"] == 5)
    said = repr((settings, sinks.stats(), health.counters())) + caplog.text
    assert sinks.close(20)
    said += "".join(p.read_bytes().decode("latin-1") for p in tmp_path.glob("o.sqlite*"))
    assert PASSWORD not in said
    assert gate.answers == set()


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.usefixtures("secrets")
def test_a_password_is_proved_without_being_told(
    mechanism: Any, gate: Gate, broker_behind_gate: Broker, tmp_path: Path, health: Health
) -> None:
    gate.users, gate.mechanism = {USER: PASSWORD}, mechanism
    settings = settings_for(gate, tmp_path, sasl=replace(SASL, mechanism=mechanism))
    sinks = build_sinks(
        AlertSettings((SinkSettings("kafka", settings),)), PrivacySettings(), health
    )
    sinks.emit(make_alert())
    wait_until(lambda: sinks.stats()["kafka"]["delivered"] == 1)
    assert sinks.close(20)
    gate.users = {USER: "another"}
    assert "refuses the user or the password" in refusal(settings, health)
    wait_until(lambda: gate.answers == {"password"})  # of the gate's own thread


def test_a_certificate_that_nobody_vouches_for_stops_the_start(
    gate: Gate, authority: trustme.CA, tmp_path: Path, health: Health
) -> None:
    use_tls(gate, authority)
    settings = settings_for(gate, tmp_path, tls=KafkaTlsSettings())
    said = refusal(settings, health)
    assert "its certificate:" in said
    assert "tls.ca_file" in said


def test_a_certificate_of_another_host_stops_the_start(
    gate: Gate, authority: trustme.CA, ca_file: str, tmp_path: Path, health: Health
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("broker.example").configure_cert(context)
    gate.context = context
    tls = KafkaTlsSettings(ca_file)
    assert "mismatch" in refusal(settings_for(gate, tmp_path, tls=tls), health)
    unchecked = replace(tls, check_hostname=False)
    assert kafka_probe.problems_of(settings_for(gate, tmp_path, tls=unchecked), HERE) == []


def test_tls_to_a_port_without_it_stops_the_start(
    ca_file: str, tmp_path: Path, health: Health
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                client.recv(4096)

        threading.Thread(target=answer, daemon=True).start()
        settings = KafkaSettings(
            f"127.0.0.1:{server.getsockname()[1]}",
            tls=KafkaTlsSettings(ca_file),
            outbox=str(tmp_path / "o.sqlite"),
        )
        assert "does not do TLS" in refusal(settings, health)


@pytest.mark.usefixtures("secrets")
def test_a_wrong_password_stops_the_start_and_is_not_quoted(
    gate: Gate, tmp_path: Path, health: Health
) -> None:
    gate.users = {USER: "another"}
    said = refusal(settings_for(gate, tmp_path, sasl=SASL), health)
    assert "refuses the user or the password" in said
    assert PASSWORD not in said


@pytest.mark.usefixtures("secrets")
def test_a_mechanism_that_brokers_do_not_have_stops_the_start(
    gate: Gate, tmp_path: Path, health: Health
) -> None:
    gate.users = {USER: PASSWORD}
    scram = replace(SASL, mechanism="SCRAM-SHA-512")
    said = refusal(settings_for(gate, tmp_path, sasl=scram), health)
    assert "does not do SASL SCRAM-SHA-512 (it does: PLAIN)" in said


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (TOPIC_AUTHORIZATION_FAILED, "topic nae.oncall is closed to this client"),
        (UNKNOWN_TOPIC, "topic nae.oncall does not exist"),
    ],
)
def test_a_topic_that_cannot_be_written_to_stops_the_start(
    gate: Gate,
    tmp_path: Path,
    health: Health,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(kafka_probe, "LIMIT_S", 20.0 if code != UNKNOWN_TOPIC else 0.5)
    gate.closed = {"nae.oncall": code}
    assert said in refusal(settings_for(gate, tmp_path, topics={"oncall": "nae.oncall"}), health)


def test_a_topic_of_a_route_that_is_closed_later_keeps_no_other_alert_back(
    gate: Gate, broker_behind_gate: Broker, tmp_path: Path, health: Health
) -> None:
    gate.closed = {"nae.oncall": TOPIC_AUTHORIZATION_FAILED}
    settings = settings_for(gate, tmp_path, topics={"oncall": "nae.oncall"})
    sink = KafkaSink(settings, make_policy(), health, delivery_timeout_s=20.0)
    for number in range(40):
        sink.emit(replace(make_alert(number), routes=("oncall",) if number % 2 else ()))
    wait_until(lambda: sink.stats()["delivered"] == 40)
    producer = sink._producer
    sink.emit(replace(make_alert(40), routes=("oncall",)))
    wait_until(lambda: sink.stats()["delivered"] == 41)
    assert sink._producer is producer is not None  # it did not start over
    assert sink.stats()["rerouted"] == 21
    assert sink.close(20)
    tail = KafkaTail(broker_behind_gate.bootstrap, "nae.alerts", timeout_s=1.0)
    assert {a.data["unmapped"]["nae.sequence"] for a in tail} == set(range(41))


def test_alerts_wait_while_the_sinks_own_topic_is_closed(
    gate: Gate, tmp_path: Path, health: Health
) -> None:
    gate.closed = {"nae.alerts": TOPIC_AUTHORIZATION_FAILED}
    settings = settings_for(gate, tmp_path)
    sink = KafkaSink(settings, make_policy(), health, delivery_timeout_s=20.0)
    sink.emit(make_alert(0))
    wait_until(lambda: sink.stats().get("retried.TopicAuthorizationFailedError"))
    assert sink.stats()["pending"] == 1
    gate.closed = {}
    wait_until(lambda: sink.stats()["delivered"] == 1)
    assert sink.close(20)


def test_secrets_that_are_not_there_are_problems(tmp_path: Path) -> None:
    settings = KafkaSettings("broker.example:9093", sasl=SASL, tls=KafkaTlsSettings("/nowhere.pem"))
    said = [str(p) for p in problems_of_security(settings, HERE, {SASL.username_env: "u"})]
    assert len(said) == 2
    assert "No such file" in said[0]
    assert f"{SASL.password_env} is not set" in said[1]
    locked = replace(settings, sasl=None, tls=KafkaTlsSettings(key_password_env="NOT_SET"))
    assert "NOT_SET is not set" in str(problems_of_security(locked, HERE, {})[0])


def test_a_password_may_not_go_readable_over_a_network() -> None:
    env = {SASL.username_env: "u", SASL.password_env: "p"}
    away = KafkaSettings("127.0.0.1:9092,broker.example:9092", sasl=SASL)
    (problem,) = problems_of_security(away, HERE, env)
    assert "would send the password readable" in problem.message
    for fine in (
        replace(away, bootstrap="127.0.0.1:1,[::1]:2,localhost:3"),
        replace(away, tls=KafkaTlsSettings()),
        replace(away, sasl=replace(SASL, mechanism="SCRAM-SHA-256")),
    ):
        assert problems_of_security(fine, HERE, env) == []


def test_the_settings_name_variables_and_the_client_is_given_their_values() -> None:
    text = """
alert:
  sinks:
    - kafka:
        bootstrap: "broker.example:9093"
        tls: {}
        sasl: {mechanism: SCRAM-SHA-512, username_env: U, password_env: P}
        dead_letter_topic: nae.dead
"""
    options = Settings.from_yaml("monitor.yaml", text).alert.sinks[0].options
    assert isinstance(options, KafkaSettings)
    assert (options.tls, options.dead_letter_topic) == (KafkaTlsSettings(), "nae.dead")
    given = security(options, {"U": "user", "P": "word"})
    assert given["security_protocol"] == "SASL_SSL"
    assert given["ssl_context"].minimum_version >= ssl.TLSVersion.TLSv1_2
    assert (given["sasl_plain_username"], given["sasl_plain_password"]) == ("user", "word")
    assert security(KafkaSettings("h:1"), {}) == {}


@pytest.mark.parametrize(
    "options",
    [
        "tls: {cert_file: a.pem}",
        "sasl: {mechanism: GSSAPI}",
        "sasl: {mechanism: PLAIN, password: oops}",
        "dead_letter_topic: nae.alerts",
        "heartbeat_s: -1",
    ],
)
def test_settings_that_cannot_be_meant_are_refused_with_their_place(options: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_yaml(
            "c.yaml", f"alert: {{sinks: [{{kafka: {{bootstrap: h:1, {options}}}}}]}}"
        )
    assert caught.value.problems[0].where.line == 1
