"""Activations over a real broker: whole requests, again after a kill, and never called clean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alert_parts import Broker
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from placement_parts import (
    D_MODEL,
    LAYER,
    Server,
    alerts,
    configuration,
    server,
    serving_anyway,
    titles,
    wait_until,
    worker_process,
)

from nae_monitor.alert.kafka_producer import API_VERSION
from nae_monitor.errors import ConfigurationError
from nae_monitor.placement.frame import Kind, pack, unpack
from nae_monitor.placement_settings import ActivationsSettings
from nae_monitor.records import Phase, VerdictState
from nae_monitor.settings import (
    ActionSettings,
    BudgetSettings,
    CaptureSettings,
    ScreenSettings,
    Settings,
)

PARTITIONS = 4


def over(broker: Broker, directory: Path, partitions: int = PARTITIONS, **changes: Any) -> Settings:
    """Settings over a broker, and the topic of them."""
    settings = configuration(
        directory,
        capture=CaptureSettings(min_position=0, placement="kafka"),
        activations=ActivationsSettings(broker.bootstrap, session_s=2.0),
        **changes,
    )
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap, api_version=API_VERSION)
    admin.create_topics([NewTopic(settings.activations.topic, partitions, 1)])
    admin.close()
    return settings


def records(settings: Settings) -> list[Any]:
    """Everything on the topic, a partition after the other."""
    found: list[Any] = []
    consumer = KafkaConsumer(
        bootstrap_servers=settings.activations.bootstrap,
        api_version=API_VERSION,
        auto_offset_reset="earliest",
    )
    places = [TopicPartition(settings.activations.topic, n) for n in range(PARTITIONS)]
    consumer.assign(places)
    ends = consumer.end_offsets(places)
    while any(consumer.position(place) < end for place, end in ends.items()):
        for some in consumer.poll(200).values():
            found += some
    consumer.close()
    return found


def test_a_partition_holds_whole_requests_in_order(broker: Broker, tmp_path: Path) -> None:
    settings = over(broker, tmp_path)
    with server(settings) as one:
        for number in range(6):
            one.start(f"r{number}", session_id=f"s{number % 3}")
        for position in range(3):
            for number in range(6):
                one.rows(f"r{number}", (position,))
        for number in range(6):
            one.finish(f"r{number}")
        assert one.outpost.close(30.0)
    by_turn: dict[int, list[tuple[int, int, Kind, bytes]]] = {}
    for record in records(settings):
        frame = unpack(record.value)
        line = (record.partition, frame.sequence, frame.kind, record.key)
        by_turn.setdefault(frame.header["turn"], []).append(line)
    assert len(by_turn) == 6
    for lines in by_turn.values():
        assert len({(partition, key) for partition, _, _, key in lines}) == 1
        assert [sequence for _, sequence, _, _ in lines] == list(range(len(lines)))
        assert (lines[0][2], lines[-1][2]) == (Kind.BEGIN, Kind.END)
    assert {line[3] for lines in by_turn.values() for line in lines} == {b"s0", b"s1", b"s2"}


def test_workers_of_a_group_judge_alert_and_record_each_request_once(
    broker: Broker, tmp_path: Path
) -> None:
    settings = over(broker, tmp_path)
    with (
        worker_process(settings, 0) as a,
        worker_process(settings, 1) as b,
        server(settings) as one,
    ):
        verdicts = [
            one.one(f"r{n}", coordinate=0 if n % 4 == 0 else 3, session_id=f"s{n}")
            for n in range(12)
        ]
        assert {verdict.state for verdict in verdicts} == {VerdictState.UNDECIDED}
        assert "their verdict does not come back" in verdicts[0].reasons[-1]
        wait_until(lambda: len(titles(tmp_path)) == 3)
        assert one.outpost.close(30.0)
        counted = [a.end(), b.end()]
    assert sum(counts.get("tokens.judged", 0) for counts in counted) == 36
    assert sum(counts.get("requests.started", 0) for counts in counted) == 12
    assert [counts["activations.lag_records"] for counts in counted] == [0, 0]
    subjects = {one["data"]["unmapped"]["gen_ai.response.id"] for one in alerts(tmp_path)}
    assert subjects == {"r0", "r4", "r8"}


def test_a_worker_killed_in_mid_stream_leaves_its_requests_to_the_next_from_their_beginning(
    broker: Broker, tmp_path: Path
) -> None:
    settings = over(broker, tmp_path)
    with server(settings) as one:
        with worker_process(settings) as first:
            one.one("r1", coordinate=0)
            wait_until(lambda: len(titles(tmp_path)) == 1)
            one.start("r2")
            one.rows("r2", (0,), coordinate=0)
            one.start("r3", session_id="another")
            one.rows("r3", (0,), coordinate=0)
            wait_until(lambda: not len(one.outpost._queue) and not one.outpost._worker.in_hand)
            first.kill()
        one.rows("r2", (1, 2), coordinate=0)
        one.finish("r2")
        one.finish("r3")
        with worker_process(settings) as second:
            wait_until(
                lambda: (
                    {a["data"]["unmapped"]["gen_ai.response.id"] for a in alerts(tmp_path)}
                    >= {"r1", "r2", "r3"}
                )
            )
            counted = second.end()
    assert counted["tokens.judged"] >= 4
    assert "placement.rows_of_unknown_turns" not in counted
    by_id = {a["id"]: a for a in alerts(tmp_path)}
    ids = [a["data"]["unmapped"]["gen_ai.response.id"] for a in by_id.values()]
    assert sorted(set(ids)) == ["r1", "r2", "r3"]
    assert len(ids) == 3  # what was told twice has one id


def test_what_a_busy_worker_has_no_room_for_waits_on_the_topic(
    broker: Broker, tmp_path: Path
) -> None:
    settings = over(broker, tmp_path, partitions=1)
    settings = replace(
        settings,
        capture=replace(settings.capture, queue_bytes=300_000),  # nearly 300 rows
        activations=replace(settings.activations, in_flight_frames=100_000),
    )
    with server(settings) as one:
        one.start("r1")
        one.start("r2")
        for position in range(400):
            for request_id in ("r1", "r2"):  # by turns, so that each row is a frame
                one.rows(request_id, (position,), coordinate=0 if position == 399 else 3)
            wait_until(lambda: len(one.outpost._queue) < 100)
        one.finish("r1")
        one.finish("r2")
        assert one.outpost.close(30.0)
    with worker_process(settings, decode_s=0.002) as worker:
        wait_until(lambda: len(titles(tmp_path)) == 2)
        counted = worker.end()
    assert counted["tokens.judged"] == 800
    assert "dropped.queue_full" not in counted


def test_a_prompt_too_long_for_a_message_is_left_out_and_its_rows_are_judged(
    broker: Broker, tmp_path: Path
) -> None:
    settings = over(broker, tmp_path, partitions=1)
    settings = replace(
        settings, activations=replace(settings.activations, max_message_bytes=65_536)
    )
    with worker_process(settings) as worker, server(settings) as one:
        one.start("r1", prompt_tokens=20_000)
        one.rows("r1", (0,), coordinate=0)
        one.rows("r1", (1,), coordinate=1)
        one.listener.tokens("r1", (1,))
        one.rows("r1", (20_000,), coordinate=1, phase=Phase.COMPLETION)
        one.finish("r1")
        wait_until(lambda: titles(tmp_path))
        assert one.outpost.close(30.0)
        assert one.counter("activations.prompts_left_out") == 1
        assert one.counter("dropped.internal") == 0
        counted = worker.end()
    assert counted["tokens.judged"] == 3
    # What reads the output says nothing of it, where "b" was said: where it stands is not known.
    assert "The output was read beside the explanation" not in titles(tmp_path)


def test_without_a_broker_a_start_is_refused_or_serves_blind(tmp_path: Path) -> None:
    settings = configuration(
        tmp_path,
        capture=CaptureSettings(min_position=0, placement="kafka"),
        activations=ActivationsSettings("127.0.0.1:1"),
    )
    settings = replace(settings, ipc=replace(settings.ipc, connect_s=0.2))
    with pytest.raises(ConfigurationError, match="no broker has answered yet"):
        Server(settings)
    with server(serving_anyway(settings)) as one:
        verdict = one.one("r1")
        assert verdict.state is VerdictState.UNDECIDED
        assert verdict.coverage.dropped_tokens == {"no_worker": 3}


def test_a_broker_that_comes_late_is_taken_on(sleeping_broker: Broker, tmp_path: Path) -> None:
    settings = configuration(
        tmp_path,
        capture=CaptureSettings(min_position=0, placement="kafka"),
        activations=ActivationsSettings(sleeping_broker.bootstrap),
    )
    settings = replace(settings, ipc=replace(settings.ipc, connect_s=0.1))
    with server(serving_anyway(settings)) as one:
        one.one("r1")
        sleeping_broker.start()
        over(sleeping_broker, tmp_path)
        wait_until(lambda: set(one.outpost.state().values()) == {"ready"})
        one.one("r2")
        assert one.outpost.close(30.0)
    kinds = [unpack(record.value).kind for record in records(settings)]
    assert kinds == [Kind.BEGIN, Kind.ROWS, Kind.END]


def test_hostile_records_are_counted_and_hurt_nobody(broker: Broker, tmp_path: Path) -> None:
    settings = over(broker, tmp_path, partitions=1)
    topic = settings.activations.topic
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, api_version=API_VERSION)
    process = [("nae_process", b"x")]
    begin = {
        "turn": 1, "request_id": "r", "group_id": "r", "model": "bench", "started_unix_ns": 0,
        "attributes": {}, "prompt_tokens": 0,
        "captured": {"process": "x", "model": "other", "layer": LAYER, "d_model": D_MODEL},
    }  # fmt: skip
    hostile = [
        (b"", process),
        (b"NAEF", process),
        (pack(Kind.END, {"turn": 1}), []),
        (pack(Kind.END, {"turn": 1}), [("nae_process", b"x" * 100)]),
        (pack(Kind.BEGIN, begin), process),
        (pack(Kind.ROWS, {"turn": -1}), process),
        (None, process),
    ]
    for value, headers in hostile:
        producer.send(topic, key=b"k", value=value, headers=headers)
    producer.flush()
    producer.close()
    with worker_process(settings) as worker, server(settings) as one:
        one.one("r1", coordinate=0)
        wait_until(lambda: titles(tmp_path))
        counted = worker.end()
    assert counted["activations.malformed_frames"] == len(hostile)
    assert counted["activations.refused"] == 1
    assert not any(name.startswith("failed.") for name in counted)


def test_orders_to_stop_cannot_travel_over_a_topic(tmp_path: Path) -> None:
    settings = configuration(
        tmp_path,
        capture=CaptureSettings(placement="kafka"),
        actions=ActionSettings(stop_generation="enforce"),
    )
    with pytest.raises(ConfigurationError, match="cannot travel back"):
        Server(settings)


def test_wishes_for_more_sampling_cannot_travel_over_a_topic(tmp_path: Path) -> None:
    settings = configuration(
        tmp_path,
        capture=CaptureSettings(placement="kafka"),
        actions=ActionSettings(raise_sampling=True),
    )
    with pytest.raises(ConfigurationError, match=r"raise_sampling.* cannot travel back"):
        Server(settings)


@pytest.mark.parametrize(
    ("placement", "way_out"),
    [("kafka", "or capture.placement to inline"), ("ipc", "let rules raise the sampling")],
)
def test_what_is_to_be_done_without_follow_ups_is_possible_in_that_placement(
    placement: Any, way_out: str, tmp_path: Path
) -> None:
    settings = configuration(
        tmp_path,
        capture=CaptureSettings(placement=placement),
        screen=ScreenSettings(budget=BudgetSettings(neighbours=1)),
    )
    with pytest.raises(ConfigurationError, match="inline only") as refused:
        Server(settings)
    assert way_out in str(refused.value)
