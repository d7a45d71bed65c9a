"""Serving processes driven by hand, and workers in processes of their own, over real sockets."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nae_monitor.alert import build_sinks
from nae_monitor.detect import Judge, load_rules
from nae_monitor.health import Health
from nae_monitor.monitor import Monitor
from nae_monitor.parts import Parts
from nae_monitor.placement import Captured, Outpost, open_outpost
from nae_monitor.placement.worker import Worker
from nae_monitor.placement_settings import IpcSettings
from nae_monitor.records import Decoding, Phase, Request, RowBatch
from nae_monitor.settings import (
    BudgetSettings,
    CaptureSettings,
    DetectSettings,
    NlaSettings,
    PrivacySettings,
    RecordSettings,
    ScreenSettings,
    Settings,
    TargetSettings,
)
from nae_monitor.sink_settings import AlertSettings, JsonlSettings, SinkSettings
from nae_monitor.testing import FakeDecoder
from nae_monitor.token_text import TokenText

D_MODEL, LAYER = 8, 2
WAIT_S = 120.0  # only ends a hung test
RULES = """
schema_version: 1
title: The first coordinate is the largest
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e31
name: first_coordinate
severity: high
scope: {phase: [prompt, completion], min_token_index: 0}
detection: {word: {field: explanation, regex: ['coordinate 0$']}, condition: word}
actions: [{stop_generation: {mode: enforce, within_tokens: 2}}]
---
schema_version: 1
title: The output was read beside the explanation
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e32
name: output_letter
severity: low
scope: {phase: [completion], min_token_index: 0}
detection:
  word: {field: explanation, regex: ['coordinate 1$']}
  said: {field: output, regex: ['(?s)b']}
  condition: word and said
"""
_SPAWNER = multiprocessing.get_context("forkserver")
_SPAWNER.set_forkserver_preload(["nae_monitor.placement.worker", "nae_monitor.testing"])


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return "".join(chr(97 + token_id % 26) for token_id in token_ids)


class SlowDecoder(FakeDecoder):
    """Takes its time, so that a worker can be killed in the middle."""

    def __init__(self, seconds: float) -> None:
        super().__init__(D_MODEL, LAYER)
        self._seconds = seconds

    def decode(
        self, vectors: torch.Tensor, *, seeds: Sequence[int] | None = None
    ) -> list[Decoding]:
        time.sleep(self._seconds)
        return super().decode(vectors)


def configuration(directory: Path, workers: int = 1, **changes: Any) -> Settings:
    """Everything decoded; workers write alerts to one file and recordings beside it."""
    rules = directory / "rules.yaml"
    rules.write_text(RULES, encoding="utf-8")
    endpoints = tuple(f"ipc://{directory}/run/worker-{n}.sock" for n in range(workers))
    sections: dict[str, Any] = {
        "target": TargetSettings("bench"),
        "nla": NlaSettings(batch_size=4),
        "capture": CaptureSettings(min_position=0, placement="ipc"),
        "screen": ScreenSettings(
            every_n_tokens=1,
            random_share=0.0,
            budget=BudgetSettings(decodes_per_s=1e6, per_request=100_000),
        ),
        "detect": DetectSettings((str(rules),), None),
        "alert": AlertSettings(
            (SinkSettings("jsonl", JsonlSettings(str(directory / "alerts.jsonl"))),)
        ),
        "record": RecordSettings(str(directory / "recordings")),
        "privacy": PrivacySettings("full"),
        "ipc": IpcSettings(endpoints, liveness_s=60.0, connect_s=WAIT_S),
    }
    return Settings(**{**sections, **changes})


def alerts(directory: Path) -> list[dict[str, Any]]:
    path = directory / "alerts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def titles(directory: Path) -> list[str]:
    return [one["data"]["finding_info"]["title"] for one in alerts(directory)]


def wait_until(condition: Callable[[], Any]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.005)


def make_worker(settings: Settings, number: int = 0, decoder: Any = None, **options: Any) -> Worker:
    health = Health()
    rules = load_rules(settings.detect.rules)
    parts = Parts(decoder or FakeDecoder(D_MODEL, LAYER), rules, Judge(rules, None, health))
    sinks = build_sinks(settings.alert, settings.privacy, health)
    return Worker(
        settings, parts, sinks, health, text=TokenText(Letters()), number=number, **options
    )


def _main(
    settings: Settings,
    number: int,
    decode_s: float,
    counters: str,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    os.environ.update(environment)  # the fork server began with that of an earlier test
    if prepare is not None:
        prepare()
    worker = make_worker(settings, number, SlowDecoder(decode_s) if decode_s else None)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    done = worker.run(deadline_s=30.0)
    counted = {**worker.health.counters(), **worker.health.gauges()}
    Path(counters).write_text(json.dumps(counted), encoding="utf-8")
    sys.exit(0 if done else 1)


class WorkerProcess:
    """One worker in a process of its own, where ``prepare`` is called first."""

    def __init__(
        self,
        settings: Settings,
        number: int = 0,
        decode_s: float = 0.0,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.directory = Path(settings.ipc.endpoints[0].removeprefix("ipc://")).parent.parent
        self._counters = self.directory / f"counters-{number}-{time.monotonic_ns()}.json"
        arguments = (settings, number, decode_s, str(self._counters), dict(os.environ), prepare)
        self._process = _SPAWNER.Process(target=_main, args=arguments, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def kill(self) -> None:
        """As ``kill -9``."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()

    def pause(self, *, on: bool) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGSTOP if on else signal.SIGCONT)

    def end(self) -> dict[str, int]:
        """End in order; what it counted."""
        self._process.terminate()
        self._process.join(WAIT_S)
        assert self._process.exitcode == 0
        counted: dict[str, int] = json.loads(self._counters.read_text(encoding="utf-8"))
        return counted


@contextmanager
def worker_process(
    settings: Settings,
    number: int = 0,
    decode_s: float = 0.0,
    prepare: Callable[[], None] | None = None,
) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(settings, number, decode_s, prepare)
    try:
        yield worker
    finally:
        worker.kill()


class Server:
    """A serving process's half, and a test that plays its tap."""

    def __init__(self, settings: Settings, **captured: Any) -> None:
        self.health = Health()
        fields = {"model": "bench", "layer": LAYER, "d_model": D_MODEL, **captured}
        self.outpost: Outpost = open_outpost(settings, self.health, captured=Captured(**fields))
        self.listener = self.outpost.listener()
        self._requests: dict[str, Request] = {}

    def start(self, request_id: str, prompt_tokens: int = 3, **fields: Any) -> None:
        request = Request(request_id, fields.pop("group_id", request_id), "bench", **fields)
        self._requests[request_id] = request
        self.listener.request_started(request, tuple(range(prompt_tokens)))

    def rows(
        self,
        request_id: str,
        positions: Sequence[int],
        coordinate: int = 3,
        phase: Phase = Phase.PROMPT,
    ) -> None:
        """Rows whose largest coordinate is ``coordinate``; counts them as seen."""
        self.health.count("tokens.seen", len(positions), request_id=request_id)
        self.listener.rows(
            RowBatch(
                requests=(self._requests[request_id],),
                request_index=(0,) * len(positions),
                positions=tuple(positions),
                token_ids=tuple(positions),
                phases=(phase,) * len(positions),
                layer=LAYER,
                vectors=torch.eye(D_MODEL)[coordinate].repeat(len(positions), 1),
            )
        )

    def generate(self, request_id: str, tokens: Sequence[int], coordinate: int = 3) -> None:
        """One completion row a token, the first at position 3."""
        for number, token in enumerate(tokens):
            self.listener.tokens(request_id, (token,))
            self.rows(request_id, (3 + number,), coordinate, Phase.COMPLETION)

    def finish(self, request_id: str) -> None:
        self.listener.request_finished(request_id)

    def one(self, request_id: str, coordinate: int = 3, **fields: Any) -> Any:
        """A whole request of three rows; its verdict."""
        self.start(request_id, **fields)
        self.rows(request_id, (0, 1, 2), coordinate)
        self.finish(request_id)
        return self.verdict(request_id)

    def verdict(self, request_id: str, wait_s: float = WAIT_S) -> Any:
        return self.outpost.judged(request_id, wait_s)

    def counter(self, name: str) -> int:
        return self.health.counters().get(name, 0)


@contextmanager
def server(settings: Settings, **captured: Any) -> Iterator[Server]:
    one = Server(settings, **captured)
    try:
        yield one
    finally:
        one.outpost.close(30.0)


def serving_anyway(settings: Settings) -> Settings:
    return replace(settings, capture=replace(settings.capture, on_failure="serve"))


@contextmanager
def remote(settings: Settings) -> Iterator[Monitor]:
    health = Health()
    outpost = open_outpost(settings, health, captured=Captured("bench", LAYER, D_MODEL))
    monitor = Monitor(settings, None, None, health, outpost=outpost)
    try:
        yield monitor
    finally:
        monitor.close(30.0)
