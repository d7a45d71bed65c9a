"""A real model under a monitor whose decoding is elsewhere gives what inline gives."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import monitor_parts
import pytest
from placement_parts import WAIT_S

from nae_monitor.alert import build_sinks
from nae_monitor.detect import Judge, load_rules
from nae_monitor.errors import ConfigurationError, UnsupportedError
from nae_monitor.health import Health
from nae_monitor.monitor import Monitor
from nae_monitor.parts import Parts
from nae_monitor.placement import Captured, Outpost
from nae_monitor.placement.outpost import open_outpost
from nae_monitor.placement.worker import Worker
from nae_monitor.placement_settings import IpcSettings
from nae_monitor.recording import Recording
from nae_monitor.records import Verdict
from nae_monitor.settings import ActionSettings, CaptureSettings, Settings
from nae_monitor.testing import FakeDecoder
from nae_monitor.token_text import TokenText

TEXTS = ("some plain words to learn from", "again and again", "words")


@pytest.fixture(scope="module")
def model() -> Any:
    return monitor_parts.target()


def settings_of(directory: Path) -> Settings:
    endpoint = f"ipc://{directory}/run/worker-0.sock"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "rules.yaml").write_text(monitor_parts.RULES, encoding="utf-8")
    settings = monitor_parts.configuration(
        directory,
        capture=CaptureSettings(min_position=2, placement="ipc"),
        ipc=IpcSettings((endpoint,), liveness_s=60.0, connect_s=WAIT_S),
    )
    return replace(
        settings, detect=replace(settings.detect, rules=(str(directory / "rules.yaml"),))
    )


@contextmanager
def working(settings: Settings) -> Iterator[Worker]:
    """A worker in a thread: its pipeline, socket and health are its own all the same."""
    health = Health()
    rules = load_rules(settings.detect.rules)
    decoder = FakeDecoder(monitor_parts.D_MODEL, monitor_parts.LAYER)
    parts = Parts(decoder, rules, Judge(rules, None, health))
    tokenizer = monitor_parts.tokenizer()
    worker = Worker(
        settings,
        parts,
        build_sinks(settings.alert, settings.privacy, health),
        health,
        text=TokenText(tokenizer),
        special_token_ids=sorted(tokenizer.all_special_ids),
    )
    thread = threading.Thread(target=worker.run, kwargs={"deadline_s": 60.0})
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join()


def remote(settings: Settings) -> Monitor:
    health = Health()
    captured = Captured("tiny", monitor_parts.LAYER, monitor_parts.D_MODEL)
    outpost: Outpost = open_outpost(settings, health, captured=captured)
    return Monitor(settings, None, None, health, outpost=outpost)


def watched(monitor: Monitor, model: Any) -> list[Verdict]:
    """Two batches and a further turn under the monitor; the verdicts."""
    with monitor.watch(model, monitor_parts.tokenizer()):
        with monitor.request(request_id="batch", session_id="s", tenant="acme"):
            monitor_parts.generate(model, monitor_parts.prompts(*TEXTS))
        for _ in range(2):
            with monitor.request(request_id="turns"):
                monitor_parts.generate(model, monitor_parts.prompt())
            # Else the ledger of the first turn may be read while the second is counted into it.
            monitor.verdict("turns", WAIT_S)
    verdicts = [monitor.verdict(name, WAIT_S) for name in ("batch", "turns", "batch#1")]
    assert monitor.close(60.0)
    return verdicts


def alerts_of(directory: Path) -> list[Any]:
    """What is the same in two runs."""
    lines = (directory / "alerts.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["data"] for line in lines]
    return sorted(
        (
            one["finding_info"]["title"],
            one["unmapped"]["gen_ai.response.id"],
            one.get("count"),
            json.dumps(one.get("evidences"), sort_keys=True),
        )
        for one in found
    )


def recorded(directory: Path) -> tuple[list[Any], list[Any]]:
    (place,) = (directory / "recordings").iterdir()
    recording = Recording.open(place)
    rows = sorted(
        (row.activation.request.request_id, row.activation.position, row.activation.token,
         row.activation.vector.tolist(), row.decoding.text if row.decoding else None)
        for row in recording.activations()
    )  # fmt: skip
    requests = [
        (r.request.request_id, r.prompt_text, r.coverage, r.state) for r in recording.requests()
    ]
    return rows, sorted(requests, key=lambda one: (one[0], str(one[2])))


def test_verdicts_alerts_and_recordings_are_those_of_inline(model: Any, tmp_path: Path) -> None:
    inline = watched(monitor_parts.monitor(tmp_path / "inline"), model)
    settings = settings_of(tmp_path / "ipc")
    with working(settings):
        elsewhere = watched(remote(settings), model)
    assert any(verdict.findings for verdict in inline)  # else the model must be of another seed
    assert elsewhere == inline
    assert alerts_of(tmp_path / "ipc") == alerts_of(tmp_path / "inline")
    assert recorded(tmp_path / "ipc") == recorded(tmp_path / "inline")


def test_a_monitor_whose_decoder_is_elsewhere_has_no_sibling(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    with working(settings):
        monitor = remote(settings)
        with pytest.raises(UnsupportedError, match="worker processes"):
            monitor.sibling(settings)
        assert monitor.close(10.0)


def test_callbacks_that_would_never_be_called_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="hear nothing"):
        Monitor.from_settings(settings_of(tmp_path), on_decision=lambda decision: None)


def test_a_rule_in_the_worker_ends_a_generation(model: Any, tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    settings = replace(settings, actions=ActionSettings(stop_generation="enforce"))
    rule = "actions: [{stop_generation: {mode: enforce}}]\n"
    text = monitor_parts.RULES.split("---")[1].rstrip() + "\n" + rule
    Path(settings.detect.rules[0]).write_text(text, encoding="utf-8")
    with working(settings) as worker:
        monitor = remote(settings)
        with (
            monitor.watch(model, monitor_parts.tokenizer()),
            monitor.request(request_id="r1"),
        ):
            output = monitor_parts.generate(model, monitor_parts.prompt(), max_new_tokens=200)
        monitor.verdict("r1", WAIT_S)
        assert monitor.close(60.0)
        assert monitor.health.counters()["actions.stopped_sequences"] == 1
        assert output.shape[1] < monitor_parts.prompt()["input_ids"].shape[1] + 200
    assert worker.health.counters()["actions.stop_generation.blocked"] == 1
