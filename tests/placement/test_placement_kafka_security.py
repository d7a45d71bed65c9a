"""Activations over TLS with a password: whole, refused clearly, secrets nowhere."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from alert_parts import Broker, free_port
from kafka.admin import KafkaAdminClient, NewTopic
from kafka_gate import Gate
from placement_parts import (
    Server,
    alerts,
    configuration,
    make_worker,
    server,
    serving_anyway,
    titles,
    wait_until,
    worker_process,
)

from nae_monitor.alert.kafka_producer import API_VERSION
from nae_monitor.errors import ConfigurationError
from nae_monitor.placement.worker import open_worker
from nae_monitor.placement_settings import ActivationsSettings
from nae_monitor.records import VerdictState
from nae_monitor.settings import CaptureSettings, NlaSettings, Settings
from nae_monitor.sink_settings import KafkaSaslSettings, KafkaTlsSettings

USER, PASSWORD = "nae", "canary-password-okapi"
SASL = KafkaSaslSettings("PLAIN", "TEST_TOPIC_USER", "TEST_TOPIC_PASSWORD")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def gate(authority: trustme.CA) -> Iterator[Gate]:
    """TLS and a password in front of a broker that tells clients of the gate's port only."""
    broker = Broker(free_port(), advertised=free_port())
    broker.start()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    assert broker.advertised is not None
    gate = Gate(broker.port, broker.advertised, context, {USER: PASSWORD})
    gate.start()
    yield gate
    gate.stop()
    broker.kill()


@pytest.fixture
def settings(
    gate: Gate, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    monkeypatch.setenv(SASL.username_env, USER)
    monkeypatch.setenv(SASL.password_env, PASSWORD)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    activations = ActivationsSettings(
        f"127.0.0.1:{gate.port}", topic=f"nae.{tmp_path.name}", session_s=2.0,
        tls=KafkaTlsSettings(str(ca_file)), sasl=SASL,
    )  # fmt: skip
    return configuration(
        tmp_path,
        nla=NlaSettings(str(tmp_path / "none"), str(tmp_path / "none")),  # a worker fails fast
        capture=CaptureSettings(min_position=0, placement="kafka"),
        activations=activations,
    )


def make_topic(settings: Settings) -> None:
    tls = settings.activations.tls
    assert tls is not None
    admin = KafkaAdminClient(
        bootstrap_servers=settings.activations.bootstrap, api_version=API_VERSION,
        security_protocol="SASL_SSL", ssl_cafile=tls.ca_file, sasl_mechanism="PLAIN",
        sasl_plain_username=USER, sasl_plain_password=PASSWORD,
    )  # fmt: skip
    admin.create_topics([NewTopic(settings.activations.topic, 1, 1)])
    admin.close()


def impatient(settings: Settings) -> Settings:
    return replace(settings, ipc=replace(settings.ipc, connect_s=0.5))


def test_activations_go_over_tls_with_a_password_that_stands_nowhere(
    settings: Settings, gate: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_topic(settings)
    caplog.set_level(logging.DEBUG)
    with worker_process(settings) as worker, server(settings) as one:
        one.one("r1", coordinate=0)
        wait_until(lambda: titles(tmp_path))
        counted = worker.end()
        said = repr((settings, one.outpost.state(), one.health.counters(), counted))
    assert counted["tokens.judged"] == 3
    assert gate.answers == set()
    assert PASSWORD not in said + caplog.text + repr(alerts(tmp_path))


def test_a_wrong_password_is_named_where_a_server_or_worker_starts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SASL.password_env, "no such password")
    with pytest.raises(ConfigurationError, match="refuses the user or the password") as caught:
        Server(impatient(settings))
    assert "no such password" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="refuses the user or the password"):
        open_worker(settings)


def test_a_wrong_password_serves_blind_where_that_is_allowed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SASL.password_env, "no such password")
    with server(serving_anyway(impatient(settings))) as one:
        verdict = one.one("r1")
    assert verdict.state is VerdictState.UNDECIDED
    assert verdict.coverage.dropped_tokens == {"no_worker": 3}


@pytest.mark.parametrize(
    ("activations", "said"),
    [
        ({"sasl": replace(SASL, password_env="TEST_TOPIC_UNSET")}, "TEST_TOPIC_UNSET is not set"),
        ({"tls": KafkaTlsSettings("/nowhere/ca.pem")}, "/nowhere/ca.pem"),
        ({"tls": None, "bootstrap": "broker.example:9092"}, "would send the password readable"),
        ({"bootstrap": "broker"}, "no HOST:PORT"),
    ],
)
def test_what_can_be_known_to_be_wrong_stops_server_and_worker_before_they_connect(
    activations: dict[str, object], said: str, settings: Settings
) -> None:
    wrong = replace(settings, activations=replace(settings.activations, **activations))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=said):
        Server(impatient(wrong))
    with pytest.raises(ConfigurationError, match=said):
        open_worker(wrong)


def test_a_certificate_that_nobody_vouches_for_is_named(settings: Settings) -> None:
    trusting = replace(settings.activations, tls=KafkaTlsSettings())
    with pytest.raises(ConfigurationError, match="its certificate"):
        Server(impatient(replace(settings, activations=trusting)))


def test_a_worker_whose_broker_went_away_is_made_all_the_same(settings: Settings) -> None:
    away = replace(settings, activations=replace(settings.activations, bootstrap="127.0.0.1:1"))
    assert make_worker(away).endpoint.startswith("kafka 127.0.0.1:1")


def test_tls_and_sasl_of_the_topic_are_read_from_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "monitor.yaml"
    path.write_text(
        "activations:\n"
        '  bootstrap: "broker.example:9093"\n'
        "  tls: {ca_file: /etc/kafka/ca.pem}\n"
        "  sasl: {mechanism: SCRAM-SHA-512}\n"
    )
    connection = Settings.from_yaml(path).activations.connection
    assert connection.tls == KafkaTlsSettings("/etc/kafka/ca.pem")
    assert connection.sasl is not None
    assert (connection.bootstrap, connection.topic) == ("broker.example:9093", "nae.activations")
    assert connection.sasl.mechanism == "SCRAM-SHA-512"
