"""Repeats, order, bounds and failing readers; a stream of an older or newer contract."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from alert_parts import Broker, make_alert, make_policy
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaProducer

from nae_monitor.alert.consume import KafkaTail
from nae_monitor.alert.event import to_event, to_json
from nae_monitor.alert.read_alert import ReadAlert, from_json
from nae_monitor.alert.tail import JsonlTail
from nae_monitor.alert.window import AlertWindow, in_order
from nae_monitor.errors import InputDataError

TOPIC = "alerts"


def read(number: int, key: str = "k") -> ReadAlert:
    return ReadAlert("s", f"id{number}", key, f"{number:05d}", "", "high", {}, {})


def structured(number: int = 0, **changes: Any) -> dict[str, Any]:
    policy = make_policy()
    event = to_event(policy.redact(make_alert(number)), policy).structured()
    return {**json.loads(to_json(event)), **changes}


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), max_size=60))
def test_a_window_gives_each_alert_once_and_each_key_in_order(
    stream: list[tuple[int, str]],
) -> None:
    window = AlertWindow()
    for number, key in stream:
        window.add(read(number * 3 + "abc".index(key), key))
    given_out = window.take()
    ids = [alert.id for alert in given_out]
    assert sorted(ids) == sorted({f"id{n * 3 + 'abc'.index(k)}" for n, k in stream})
    for key in "abc":
        of_key = [alert.sequence for alert in given_out if alert.key == key]
        assert of_key == sorted(of_key)
    assert window.repeats == len(stream) - len(ids)


@given(st.permutations(range(6)))
def test_every_order_of_arrival_comes_out_the_same(order: list[int]) -> None:
    assert [a.sequence for a in in_order(map(read, order))] == [f"{n:05d}" for n in range(6)]


def test_sources_that_share_a_key_keep_their_own_order_and_places() -> None:
    other = ReadAlert("other", "x", "k", "00000", "", "high", {}, {})
    assert in_order([read(2), other, read(1)]) == [read(1), other, read(2)]


def test_what_was_given_out_and_not_handled_is_no_repeat() -> None:
    window = AlertWindow()
    window.add(read(1))
    (alert,) = window.take()
    window.add(read(1))
    assert window.take() == [alert]
    window.handled(alert)
    window.add(read(1))
    assert (window.take(), window.repeats) == ([], 1)


def test_memory_is_bounded_by_what_is_held_and_remembered() -> None:
    window = AlertWindow(remembered=2, most_held=3)
    for number in range(3):
        assert not window.is_full
        window.add(read(number))
    assert window.is_full
    for alert in window.take():
        window.handled(alert)
    window.add(read(0))  # forgotten by now: a late repeat passes, and memory stays small
    window.add(read(2))
    assert [alert.id for alert in window.take()] == ["id0"]


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (structured(type="io.nae_monitor.alert.v2"), "reads 'io.nae_monitor.alert.v1'"),
        (structured(type="io.nae_monitor.alert.v0"), "upgrade whichever is older"),
        (structured(data={"metadata": {"version": "2.1.0"}}), "follows OCSF '2.1.0'"),
    ],
)
def test_an_alert_of_another_contract_is_an_error_and_not_skipped(
    event: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "alerts.jsonl"
    path.write_text(json.dumps(event) + "\n")
    with pytest.raises(InputDataError, match=said):
        list(JsonlTail(path))


def test_a_later_minor_version_and_members_of_its_own_are_read() -> None:
    event = structured()
    event["data"]["metadata"]["version"] = "1.9.0"
    event["data"]["unmapped"]["nae.later"] = 1
    assert from_json(json.dumps(event).encode()) is not None


def test_events_of_other_kinds_are_no_alerts() -> None:
    assert from_json(json.dumps(structured(type="io.nae_monitor.heartbeat.v1")).encode()) is None


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_attributes_of_any_type_never_raise(value: Any) -> None:
    for name in ("source", "id", "partitionkey", "sequence", "time", "severitytext"):
        found = from_json(json.dumps(structured(**{name: value})).encode())
        assert (found is None) == (not isinstance(value, str))


def send(broker: Broker, numbers: list[int]) -> None:
    policy = make_policy()
    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap, api_version=(2, 6), enable_idempotence=False
    )
    for number in numbers:
        event = to_event(policy.redact(make_alert(number)), policy)
        producer.send(TOPIC, value=event.value(), key=event.key, headers=event.headers()).get(30)
    producer.close()


def tail(broker: Broker) -> KafkaTail:
    return KafkaTail(
        broker.bootstrap, TOPIC, group="g", timeout_s=1.0, reorder_s=0.2, session_timeout_s=2.0
    )


@pytest.mark.live
def test_a_reader_that_fails_sees_its_alert_again_and_one_that_is_done_does_not(
    broker: Broker,
) -> None:
    send(broker, [2, 0, 1, 0])
    reader = tail(broker)
    for count, _ in enumerate(itertools.islice(reader, 2)):
        assert count < 2  # leaves while the second is in hand
    again = [alert.data["unmapped"]["nae.sequence"] for alert in reader]
    assert again[-2:] == [1, 2]
    assert reader.repeats >= 1
    assert list(tail(broker)) == []
