"""Where an alert goes by the routes of its rule, and what came of a stop."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from alert_parts import Broker, make_alert, make_policy, wait_until
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from rich.console import Console

from nae_monitor.alert import ContentPolicy, Sinks, build_sinks, consume_kafka, kafka_producer
from nae_monitor.alert.audience import Audience
from nae_monitor.alert.console import render
from nae_monitor.alert.event import to_event
from nae_monitor.alert.kafka import KafkaSink
from nae_monitor.alert.kafka_address import check
from nae_monitor.alert.otel_mapping import evaluation_attributes, span_attributes
from nae_monitor.errors import ConfigurationError, Mark
from nae_monitor.health import Health
from nae_monitor.records import Alert, Severity, StopOutcome
from nae_monitor.settings import PrivacySettings, Settings
from nae_monitor.sink_settings import (
    AlertSettings,
    ConsoleSettings,
    JsonlSettings,
    KafkaSettings,
    SinkSettings,
)
from nae_monitor.testing import ListSink


def routed(sequence: int, *routes: str) -> Alert:
    return replace(make_alert(sequence), routes=routes)


def jsonl(path: Path, *routes: str) -> SinkSettings:
    return SinkSettings("jsonl", JsonlSettings(str(path), routes=routes))


def sequences(path: Path) -> list[int]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line)["data"]["unmapped"]["nae.sequence"] for line in lines]


def test_a_sink_with_routes_takes_the_alerts_that_name_one_of_them(
    tmp_path: Path, health: Health
) -> None:
    every, oncall = tmp_path / "all.jsonl", tmp_path / "oncall.jsonl"
    settings = AlertSettings((jsonl(every), jsonl(oncall, "oncall", "siem")))
    sinks = build_sinks(settings, PrivacySettings(), health)
    for number, routes in enumerate([(), ("oncall",), ("review",), ("review", "siem")]):
        sinks.emit(routed(number, *routes))
    assert sinks.close(20.0)
    assert sequences(every) == [0, 1, 2, 3]
    assert sequences(oncall) == [1, 3]


def test_one_sink_must_take_what_no_route_leads_to(tmp_path: Path, health: Health) -> None:
    settings = AlertSettings((jsonl(tmp_path / "a", "oncall"), jsonl(tmp_path / "b", "siem")))
    with pytest.raises(ConfigurationError, match="every sink takes certain routes only"):
        build_sinks(settings, PrivacySettings(), health)


def test_routes_and_the_fate_of_a_stop_stand_in_spans_events_and_headers() -> None:
    policy = make_policy()
    alert = policy.redact(replace(routed(1, "oncall", "siem"), stop=StopOutcome.WOULD_BLOCK))
    span = span_attributes(alert, "hash")
    assert (span["nae.routes"], span["nae.stop"]) == (["oncall", "siem"], "would_block")
    assert evaluation_attributes(alert)["nae.routes"] == ["oncall", "siem"]
    event = to_event(alert, policy)
    assert ("ce_routes", b"oncall,siem") in event.headers()
    assert event.data["unmapped"]["nae.stop"] == "would_block"
    assert (event.data["action_id"], event.data["disposition_id"]) == (3, 19)
    console = Console(width=200, record=True)
    console.print(render(alert))
    assert "would block · for oncall, siem" in console.export_text()


def test_without_routes_and_stop_nothing_is_said_of_them() -> None:
    policy = make_policy()
    alert = policy.redact(routed(1))
    assert not {"nae.routes", "nae.stop"} & set(span_attributes(alert, "hash"))
    assert "routes" not in to_event(alert, policy).attributes


def test_an_ended_generation_is_a_blocked_action_to_a_security_lake() -> None:
    policy: ContentPolicy = make_policy()
    event = to_event(policy.redact(replace(routed(1), stop=StopOutcome.BLOCKED)), policy)
    assert (event.data["action_id"], event.data["disposition_id"]) == (2, 2)


def test_kafka_topics_are_chosen_by_route(
    broker: Broker, tmp_path: Path, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first send waits for metadata: on a busy machine longer than usual.
    monkeypatch.setattr(kafka_producer, "MAX_BLOCK_MS", 20_000)
    topics = {"oncall": "nae.oncall", "siem": "nae.siem"}
    outbox = str(tmp_path / "o.sqlite")
    settings = KafkaSettings(broker.bootstrap, "nae.alerts", outbox=outbox, topics=topics)
    sink = KafkaSink(settings, make_policy(), health)
    for number, routes in enumerate([(), ("oncall",), ("oncall", "siem"), ("oncall", "review")]):
        sink.emit(routed(number, *routes))
    wait_until(lambda: sink.stats()["delivered"] == 6, 120.0)
    assert sink.close(20)
    expected = {"nae.alerts": [0, 3], "nae.oncall": [1, 2, 3], "nae.siem": [2]}  # all six
    for topic, sequences_there in expected.items():
        reading = consume_kafka(broker.bootstrap, topic, timeout_s=60.0)
        found = list(islice(reading, len(sequences_there)))
        assert [alert.data["unmapped"]["nae.sequence"] for alert in found] == sequences_there
    counts = sink.stats()
    assert (counts["accepted"], counts["delivered"], counts["pending"]) == (6, 6, 0)


def test_a_topic_of_a_route_is_checked_at_the_start() -> None:
    settings = KafkaSettings("127.0.0.1:9092", topics={"oncall": "no topic"})
    assert [problem.message for problem in check(settings, Mark("here"))] == [
        "topic 'no topic' is no topic name"
    ]


def test_routes_and_topics_are_read_from_the_configuration() -> None:
    text = """
alert:
  sinks:
    - console
    - jsonl: {path: a.jsonl, routes: [oncall]}
    - kafka: {bootstrap: "127.0.0.1:9092", topics: {oncall: nae.oncall}}
actions: {stop_generation: enforce, hold_s: 2, raise_sampling: true}
"""
    settings = Settings.from_yaml("monitor.yaml", text)
    jsonl_sink, kafka_sink = (sink.options for sink in settings.alert.sinks[1:])
    assert isinstance(jsonl_sink, JsonlSettings)
    assert isinstance(kafka_sink, KafkaSettings)
    assert jsonl_sink.routes == ("oncall",)
    assert kafka_sink.topics == {"oncall": "nae.oncall"}
    assert (settings.actions.stop_generation, settings.actions.hold_s) == ("enforce", 2.0)


@pytest.mark.parametrize(
    ("kafka", "said"),
    [
        ("{bootstrap: 'h:1', topics: [a]}", "topics must be a mapping"),
        ("{bootstrap: 'h:1', topics: {a: 1}}", "a is 1"),
    ],
)
def test_a_topic_map_that_is_none_is_refused_with_its_place(kafka: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        Settings.from_yaml("monitor.yaml", f"alert: {{sinks: [{{kafka: {kafka}}}]}}\n")
    assert caught.value.problems[0].where.line == 1


def severities(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line)["severitytext"].lower() for line in lines]


def emitted(settings: AlertSettings, health: Health) -> None:
    """One alert of each severity."""
    sinks = build_sinks(settings, PrivacySettings(), health)
    for number, severity in enumerate(Severity):
        sinks.emit(make_alert(number, severity=severity))
    assert sinks.close(20.0)


def test_informational_alerts_stay_here_unless_a_sink_asks_for_them(
    tmp_path: Path, health: Health
) -> None:
    usual, every, grave = (tmp_path / name for name in ("usual", "every", "grave"))
    settings = AlertSettings(
        (
            jsonl(usual),
            SinkSettings("jsonl", JsonlSettings(str(every), min_severity="informational")),
            SinkSettings("jsonl", JsonlSettings(str(grave), min_severity="high")),
        )
    )
    emitted(settings, health)
    assert severities(usual) == ["low", "medium", "high", "critical"]
    assert severities(every) == [severity.value for severity in Severity]
    assert severities(grave) == ["high", "critical"]
    counters = health.counters()
    assert counters["alert.jsonl.below_severity"] == 1
    assert counters["alert.jsonl#3.below_severity"] == 3
    assert "alerts.below_severity" not in counters  # each of them reached somebody


def test_an_alert_that_no_sink_takes_for_its_severity_is_counted(
    tmp_path: Path, health: Health
) -> None:
    emitted(AlertSettings((jsonl(tmp_path / "a"),), min_severity="medium"), health)
    assert severities(tmp_path / "a") == ["medium", "high", "critical"]
    assert health.counters()["alerts.below_severity"] == 2


@pytest.mark.parametrize("stop", [None, *StopOutcome])
def test_an_ordered_stop_is_told_whatever_the_severity(
    stop: StopOutcome | None, health: Health
) -> None:
    kept = ListSink()
    sinks = Sinks({"kept": kept}, health, least={"kept": Severity.CRITICAL})
    alert = replace(make_alert(severity=Severity.INFORMATIONAL), stop=stop)
    told = stop not in (None, StopOutcome.WOULD_BLOCK)
    assert sinks.takes(alert) is told
    sinks.emit(alert)
    assert kept.alerts == [alert] * told
    assert health.counters().get("alerts.below_severity", 0) == (not told)


@given_settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(Severity), st.booleans()), max_size=5))
def test_every_alert_is_taken_or_counted_by_each_sink_that_it_is_meant_for(
    sinks: list[tuple[Severity, bool]],
) -> None:
    health, lists = Health(), {f"s{n}": ListSink() for n in range(len(sinks))}
    routes = {f"s{n}": Audience(frozenset({"a"})) for n, (_, only) in enumerate(sinks) if only}
    least = {f"s{n}": severity for n, (severity, _) in enumerate(sinks)}
    built = Sinks(lists, health, routes, least)
    for number, severity in enumerate(Severity):
        built.emit(replace(make_alert(number, severity=severity), routes=("b",)))
    for name, sink in lists.items():
        below = health.counters().get(f"alert.{name}.below_severity", 0)
        assert len(sink.alerts) + below == (0 if name in routes else len(Severity))
        assert all(alert.severity.rank >= least[name].rank for alert in sink.alerts)


def test_the_least_severity_is_configured_for_all_sinks_and_for_one(tmp_path: Path) -> None:
    text = (
        "alert:\n  min_severity: medium\n"
        "  sinks: [console, {console: {min_severity: critical, routes: [oncall]}}]\n"
    )
    settings = Settings.from_yaml(tmp_path / "c.yaml", text).alert
    assert settings.min_severity == "medium"
    assert [one.options for one in settings.sinks] == [
        ConsoleSettings(),
        ConsoleSettings(("oncall",), "critical"),
    ]
    assert Settings().alert.min_severity == "low"
    with pytest.raises(ConfigurationError, match="min_severity is 'loud'"):
        Settings.from_yaml(tmp_path / "c.yaml", text.replace("medium", "loud"))
