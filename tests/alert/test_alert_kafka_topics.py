"""Topics of routes: one wait for all of them, and none that keeps the others back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from alert_parts import Broker, make_alert, make_policy, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.alert.kafka import KafkaSink
from nae_monitor.alert.kafka_producer import connect, discard, unknown_topics
from nae_monitor.alert.kafka_topics import AVOID_S, TRIALS, RouteTopics
from nae_monitor.health import Health
from nae_monitor.sink_settings import KafkaSettings
from nae_monitor.testing import ManualClock

SETTINGS = KafkaSettings("127.0.0.1:9", "nae.alerts", {"oncall": "nae.oncall", "siem": "nae.siem"})


def test_an_alert_goes_once_to_each_topic_that_its_routes_lead_to() -> None:
    topics = RouteTopics(SETTINGS)
    assert topics.names == ("nae.alerts", "nae.oncall", "nae.siem")
    assert topics.of_routes(()) == ("",)
    assert topics.of_routes(("siem", "review", "oncall", "siem")) == ("nae.siem", "", "nae.oncall")
    assert topics.now("") == ("nae.alerts", False)


def test_a_topic_that_cannot_be_written_to_is_left_for_a_while() -> None:
    clock = ManualClock()
    topics = RouteTopics(SETTINGS, clock)
    for _ in range(TRIALS):
        assert topics.now("nae.oncall") == ("nae.oncall", False)
        topics.failed({"nae.oncall"})
    assert topics.now("nae.oncall") == ("nae.alerts", True)
    assert topics.now("nae.siem") == ("nae.siem", False)
    clock.advance(AVOID_S)
    assert topics.now("nae.oncall") == ("nae.oncall", False)


def test_topics_that_are_unknown_together_are_found_out_together() -> None:
    topics = RouteTopics(SETTINGS, ManualClock())
    for _ in range(TRIALS):
        topics.failed({"nae.oncall", "nae.siem"})
    assert [topics.now(name)[1] for name in topics.names] == [False, True, True]


def test_a_topic_that_refuses_this_client_is_left_at_once_and_the_sinks_own_never() -> None:
    clock = ManualClock()
    topics = RouteTopics(SETTINGS, clock)
    assert topics.refused("nae.oncall")
    assert topics.now("nae.oncall") == ("nae.alerts", True)
    assert not topics.refused("nae.oncall")  # known already
    assert not topics.refused("nae.alerts")
    assert topics.now("") == ("nae.alerts", False)
    clock.advance(AVOID_S)
    assert topics.now("nae.oncall") == ("nae.oncall", False)


@settings(deadline=None)
@given(st.lists(st.sampled_from([*RouteTopics(SETTINGS).names, "taken"]), max_size=20))
def test_only_so_many_failures_in_a_row_leave_a_topic(events: list[str]) -> None:
    topics, in_row = RouteTopics(SETTINGS, ManualClock()), 0
    left = False
    for event in events:
        left = left and event != "nae.alerts"
        if event == "taken":
            topics.acknowledged("nae.oncall")
        else:
            topics.failed({event})
        in_row = {"nae.oncall": in_row + 1, "nae.siem": in_row}.get(event, 0)
        left = left or in_row >= TRIALS
        in_row %= TRIALS
    assert topics.now("nae.oncall")[1] is left


def test_while_the_brokers_are_away_no_topic_is_blamed_and_the_producer_goes_on_asking(
    sleeping_broker: Broker, tmp_path: Path, health: Health
) -> None:
    given_settings = replace(
        SETTINGS, bootstrap=sleeping_broker.bootstrap, outbox=str(tmp_path / "o.sqlite")
    )
    sink = KafkaSink(given_settings, make_policy(), health, delivery_timeout_s=600.0)
    for number, route in enumerate(("oncall", "siem", "none")):
        sink.emit(replace(make_alert(number), routes=(route,)))

    def trials() -> int:
        return sink.stats().get("retried.KafkaTimeoutError", 0)

    wait_until(lambda: trials() > 0, 120.0)
    producer = sink._producer
    wait_until(lambda: trials() > TRIALS, 120.0)
    assert sink._producer is producer is not None
    assert "rerouted" not in sink.stats()
    assert not any(sink._topics.now(topic)[1] for topic in sink._topics.names)
    sink.close(1.0)
    assert sink.stats()["pending"] == 3


@pytest.mark.live
def test_one_wait_brings_the_metadata_of_every_topic(broker: Broker) -> None:
    names = RouteTopics(SETTINGS).names
    producer = connect(KafkaSettings(broker.bootstrap), names, 10.0)
    try:
        wait_until(lambda: not unknown_topics(producer, names), 120.0)  # none was sent to
        assert unknown_topics(producer, ["nae.other"]) == ["nae.other"]
    finally:
        assert discard(producer, 1.0) == ""
