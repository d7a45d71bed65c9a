"""Whatever happens to the monitor in mid-stream, `generate` writes what it writes without one."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import monitor_parts
import pytest
import torch
from placement_parts import (
    D_MODEL,
    WAIT_S,
    configuration,
    remote,
    serving_anyway,
    titles,
    wait_until,
    worker_process,
)

from nae_monitor.monitor import Monitor
from nae_monitor.placement_settings import ActivationsSettings
from nae_monitor.records import Verdict, VerdictState
from nae_monitor.settings import CaptureSettings

TEXTS = ("some plain words to learn from", "again and again", "words")
NEW_TOKENS, FAULT_AT = 60, 20


class AtToken:
    """A logits processor that does something once, in the middle of a generation."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self.tokens = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.tokens += 1
        if self.tokens == FAULT_AT:
            self._act()
        return scores


@pytest.fixture(scope="module")
def model() -> Any:
    return monitor_parts.target(D_MODEL)


@pytest.fixture(scope="module")
def alone(model: Any) -> torch.Tensor:
    """What the model writes without a monitor."""
    return written(model)


def written(model: Any, act: Callable[[], object] = lambda: None) -> torch.Tensor:
    """Everything that a batch comes to; ``act`` is called in its middle."""
    fault = AtToken(act)
    output = monitor_parts.generate(
        model,
        monitor_parts.prompts(*TEXTS),
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        logits_processor=[fault],
    )
    assert fault.tokens == NEW_TOKENS
    return output


def watched(
    monitor: Monitor, model: Any, request_id: str, act: Callable[[], object] = lambda: None
) -> torch.Tensor:
    with (
        monitor.watch(model, monitor_parts.tokenizer()),
        monitor.request(request_id=request_id),
    ):
        return written(model, act)


def dropped(verdict: Verdict) -> set[str]:
    return set(verdict.coverage.dropped_tokens)


def test_a_worker_killed_while_a_model_generates_changes_no_token_and_is_told(
    model: Any, alone: torch.Tensor, tmp_path: Path
) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings, decode_s=30.0) as worker, remote(settings) as monitor:
        output = watched(monitor, model, "r1", worker.kill)
        assert torch.equal(output, alone)
        verdict = monitor.verdict("r1", WAIT_S)
        assert verdict.state is VerdictState.UNDECIDED
        assert dropped(verdict) & {"worker_lost", "no_worker"}
        wait_until(lambda: titles(tmp_path))
        assert titles(tmp_path)[0].startswith("Monitor is blind: ipc.worker-0")
        assert torch.equal(watched(monitor, model, "r2"), alone)  # and with nobody there
        assert monitor.verdict("r2", WAIT_S).state is VerdictState.UNDECIDED


def test_a_worker_that_hangs_while_a_model_generates_changes_no_token_and_costs_rows(
    model: Any, alone: torch.Tensor, tmp_path: Path
) -> None:
    settings = configuration(tmp_path)
    settings = replace(
        settings,
        ipc=replace(settings.ipc, high_water_frames=8),
        capture=replace(settings.capture, queue_bytes=20_000),
    )
    with worker_process(settings) as worker, remote(settings) as monitor:
        outputs = [watched(monitor, model, "r0", lambda: worker.pause(on=True))]
        outputs += [watched(monitor, model, f"r{number}") for number in range(1, 4)]
        assert all(torch.equal(output, alone) for output in outputs)
        assert monitor.verdict("r3", wait_s=0.0).state is VerdictState.UNDECIDED
        worker.pause(on=False)
        verdict = monitor.verdict("r3", WAIT_S)
        # Rows that the link held while the worker hung may still match a rule: an alert stands.
        found = VerdictState.ALERT if verdict.findings else VerdictState.UNDECIDED
        assert verdict.state is found
        assert dropped(verdict)


def test_a_broker_that_is_away_changes_no_token_and_is_told(
    model: Any, alone: torch.Tensor, tmp_path: Path
) -> None:
    settings = configuration(
        tmp_path,
        capture=CaptureSettings(min_position=0, placement="kafka"),
        activations=ActivationsSettings("127.0.0.1:1"),
    )
    settings = serving_anyway(replace(settings, ipc=replace(settings.ipc, connect_s=0.2)))
    with remote(settings) as monitor:
        assert torch.equal(watched(monitor, model, "r1"), alone)
        verdict = monitor.verdict("r1", WAIT_S)
        assert verdict.state is VerdictState.UNDECIDED
        assert dropped(verdict) == {"no_worker"}
        wait_until(lambda: titles(tmp_path))
        assert titles(tmp_path)[0].startswith("Monitor is blind")


@contextmanager
def files_cannot_grow() -> Iterator[Callable[[], None]]:
    """What is yielded makes every write to a file fail from then on, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_while_a_model_generates_changes_no_token_and_is_counted(
    tmp_path: Path,
) -> None:
    model = monitor_parts.target()
    alone = written(model)
    monitor = monitor_parts.monitor(tmp_path)
    with files_cannot_grow() as fill:
        assert torch.equal(watched(monitor, model, "r1", fill), alone)
        assert torch.equal(watched(monitor, model, "r2"), alone)
        monitor.verdict("r2", WAIT_S)
        monitor.close(2.0)
    counted = monitor.health.counters()
    assert any(name.startswith("failed.record") for name in counted), counted
    assert counted["alerts.monitor_blind"]
