"""A whole monitored run under ``content: hash``: what was said stands nowhere, whatever failed."""

from __future__ import annotations

import io
import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alert_parts import Broker, OtlpReceiver, health, receiver, sleeping_broker, wait_until
from kafka import KafkaConsumer
from monitor_parts import D_MODEL, LAYER, generate, monitor, prompt, target, tokenizer
from rich.console import Console
from rich.logging import RichHandler

from nae_monitor.replay import replay
from nae_monitor.settings import PrivacySettings
from nae_monitor.sink_settings import (
    AlertSettings,
    JsonlSettings,
    KafkaSettings,
    OtelSettings,
    SinkSettings,
)
from nae_monitor.testing import FakeDecoder

__all__ = ["health", "receiver", "sleeping_broker"]

SAID = "canary-prompt-zebra"
THOUGHT = "canary-explanation-zebra"
MATCHED = "canary-matched-zebra"
KEY = "canary-key-zebra"
CANARIES = (SAID, THOUGHT, MATCHED, KEY, "canary-raised-zebra")
RULE = f"""
schema_version: 1
title: Thinks of a zebra
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e01
name: zebra
version: 1
status: stable
severity: high
description: Matches what the decoder of this test says.
author: tests
date: 2026-01-01
scope: {{phase: [prompt, completion], min_token_index: 0}}
detection:
  any: {{field: explanation, keywords: {{any: [{MATCHED}]}}}}
  condition: any
"""


def raises(*_: Any) -> None:
    raise RuntimeError("canary-raised-zebra")


@pytest.fixture
def everything_logged() -> Iterator[io.StringIO]:
    """The root logger at DEBUG with tracebacks, as a host that debugs has it."""
    out = io.StringIO()
    handler = RichHandler(console=Console(file=out, width=200), show_path=False)
    root, kafka = logging.getLogger(), logging.getLogger("kafka")
    levels = root.level, kafka.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    kafka.setLevel(logging.DEBUG)
    yield out
    root.removeHandler(handler)
    root.setLevel(levels[0])
    kafka.setLevel(levels[1])


def sinks(directory: Path, broker: Broker, receiver: OtlpReceiver) -> AlertSettings:
    outbox = str(directory / "o.sqlite")
    return AlertSettings(
        (
            SinkSettings("console"),
            SinkSettings("jsonl", JsonlSettings(str(directory / "alerts.jsonl"))),
            SinkSettings("otel", OtelSettings(f"http://127.0.0.1:{receiver.port}")),
            SinkSettings("kafka", KafkaSettings(broker.bootstrap, outbox=outbox, heartbeat_s=0.1)),
        )
    )


def rows(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as db:
        return repr(
            [db.execute(f"SELECT * FROM {t}").fetchall() for t in ("pending", "rejected")]
        ).encode()


def topic(broker: Broker) -> bytes:
    consumer = KafkaConsumer(
        "nae.alerts",
        bootstrap_servers=broker.bootstrap,
        api_version=(2, 6),
        auto_offset_reset="earliest",
        group_id=None,
    )
    found: list[Any] = []

    def alerts_came() -> bool:
        for batch in consumer.poll(timeout_ms=200).values():
            found.extend(batch)
        return any(dict(r.headers)["ce_type"].endswith(b"alert.v1") for r in found)

    try:
        wait_until(alerts_came)
    finally:
        consumer.close()
    return repr(found).encode()


def test_no_text_of_a_run_stands_in_any_span_event_log_line_row_file_or_label(
    tmp_path: Path,
    sleeping_broker: Broker,
    receiver: OtlpReceiver,
    everything_logged: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NAE_MONITOR_HMAC_KEY", KEY)
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_AND_EVENT")
    watched = monitor(
        tmp_path / "run",
        rules=RULE,
        decoder=FakeDecoder(D_MODEL, LAYER, lambda _: f"{THOUGHT} and {MATCHED}"),
        observer=raises,
        on_decision=raises,
        privacy=PrivacySettings("hash"),
        alert=sinks(tmp_path / "run", sleeping_broker, receiver),
    )
    model = target()
    with watched.watch(model, tokenizer()), watched.request("r1", attributes={"note": SAID}):
        written = generate(model, prompt(f"{SAID} and some plain words"))
    said = tokenizer().decode(written[0], skip_special_tokens=True).removeprefix(SAID)
    watched.verdict("r1", 20.0)
    wait_until(lambda: watched.sink_stats()["kafka"]["outbox_events"] >= 1)
    places = {"outbox": rows(tmp_path / "run" / "o.sqlite")}
    sleeping_broker.start()
    wait_until(lambda: watched.sink_stats()["kafka"]["delivered"] >= 1)
    wait_until(lambda: watched.sink_stats()["kafka"].get("heartbeats"))
    places["topic"] = topic(sleeping_broker)
    places["counters"] = repr((watched.health.counters(), watched.sink_stats())).encode()
    watched.close(20.0)
    (tmp_path / "run" / "rules.yaml").unlink()  # names what it looks for
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            places[path.name] = path.read_bytes()
    places["telemetry"] = b"".join(r.SerializeToString() for r in receiver.requests)
    places["log"] = everything_logged.getvalue().encode()
    places["terminal"] = "".join(capfd.readouterr()).encode()
    for name, place in places.items():
        leaked = [canary for canary in CANARIES if canary.encode() in place]
        assert (name, leaked) == (name, [])
        assert said.encode() not in place, name
    assert len(receiver.spans) == len(receiver.events) == 1
    assert b"zebra" in places["telemetry"]  # the rule's own name
    assert any(name.startswith("failed.observer") for name in watched.health.counters())


def test_alerts_on_the_wire_have_the_ids_that_a_replay_gives(
    tmp_path: Path, sleeping_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = str(tmp_path / "o.sqlite")
    kafka = SinkSettings("kafka", KafkaSettings(sleeping_broker.bootstrap, outbox=outbox))
    decoder = FakeDecoder(D_MODEL, LAYER)
    watched = monitor(tmp_path / "run", decoder=decoder, alert=AlertSettings((kafka,)))
    model = target()
    with watched.watch(model, tokenizer()):
        for _ in range(2):  # the same id twice: another turn, another alert
            with watched.request("r1"):
                generate(model, prompt())
    watched.verdict("r1", 20.0)
    watched.close(5.0)
    with closing(sqlite3.connect(outbox)) as db:
        values = [json.loads(value) for (value,) in db.execute("SELECT value FROM pending")]
    assert watched.recording is not None
    run = replay(
        [watched.recording],
        tmp_path / "again",
        decoder=decoder,
        judge=watched._parts.judge,
        mode="live",
        suppress={},
    )
    lines = (run.directory / "alerts.jsonl").read_text().splitlines()
    again = sorted(json.loads(line)["alert_id"] for line in lines)
    assert again
    assert sorted(value["finding_info"]["uid"] for value in values) == again
    assert len(set(again)) == len(again)
