from __future__ import annotations

import ctypes
import io
import json
import platform
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import tiny_trainer
import torch
from rich.console import Console

from nae_monitor.train import display
from nae_monitor.train.display import Display, duration
from nae_monitor.train.machine import (
    Meter,
    Work,
    keep_freed_memory,
    matmul_peak,
    reconstructor_work,
    verbalizer_work,
)
from nae_monitor.train.plot import write_plot


def test_memory_settings_are_taken_where_glibc_is_and_skipped_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()


def test_a_libc_without_the_settings_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()


def test_the_peak_is_measured_once_for_a_device_and_precision() -> None:
    matmul_peak.cache_clear()
    first = matmul_peak("cpu", torch.float32, 1e-3)
    assert first > 1e6
    assert matmul_peak("cpu", torch.float32, 1e-3) == first


def test_work_is_counted_from_the_linear_layers_that_run(model: Any) -> None:
    layer = model.model.layers[0]
    block = sum(m.weight.numel() for m in layer.modules() if isinstance(m, torch.nn.Linear))
    head = model.lm_head.weight.numel()
    training = verbalizer_work(model, 10, training=True)
    assert training.per_example == 4 * tiny_trainer.LAYERS * block * 10
    assert training.per_token == 4 * (tiny_trainer.LAYERS * block + head)
    reading = verbalizer_work(model, 10, training=False)
    assert reading.flops(3, 7) * 2 == training.flops(3, 7)
    rebuilt = reconstructor_work(model, tiny_trainer.K)
    assert rebuilt.per_token == 4 * tiny_trainer.K * block
    assert rebuilt.per_example == 6 * tiny_trainer.D**2


def test_a_stage_that_did_nothing_has_no_speed_and_the_share_needs_the_peak() -> None:
    meter = Meter()
    assert meter.row(Work(1.0, 1.0), 1e9) == {}
    meter.add(4, 20, 2.0)
    meter.add(4, 20, 2.0)
    assert meter.row(None, None) == {"examples_per_s": 2.0, "tokens_per_s": 10.0}
    assert meter.row(Work(5.0, 1.0), 40.0)["share_of_matmul_peak"] == 0.5  # 80 FLOP in 4 s


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (3720, "1 h 02 min")],
)
def test_durations_are_written_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, every_s: float) -> str:
    monkeypatch.setattr(display, "PLAIN_EVERY_S", every_s)
    clock = iter(float(n) for n in range(1000))
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=90, markup=False, highlight=False)
    with Display(console) as screen:
        for done in range(1, 6):
            screen.tick("av", done, 5)
        screen.row("av", {"step": 5, "loss": 1.23456, "gap": 0.5})
        screen.row("collect", {"done": 2, "total": 2})
    return file.getvalue()


def test_without_a_terminal_progress_is_plain_lines_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = shown(monkeypatch, terminal=False, every_s=0.0)
    assert "\x1b" not in text
    assert "av  2/5, 3 s left" in text
    assert "av  5/5\n" in text
    assert "av  step 5  loss 1.235  gap 0.5" in text
    assert "collect  2/2" in text


def test_plain_lines_come_seldom_and_always_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=False, every_s=1e9)
    assert "av  5/5\n" in text
    assert "av  3/5" not in text


def test_a_terminal_shows_a_bar_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True, every_s=0.0)
    assert "5/5" in text
    assert "━" in text
    assert "av  2/5, " not in text


def write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_plot_shows_losses_and_fidelity_with_rounds_behind_the_first_training(
    tmp_path: Path,
) -> None:
    write_rows(tmp_path / "av/steps.jsonl", [{"step": n, "loss": 3 / n} for n in range(1, 900)])
    write_rows(tmp_path / "av/metrics.jsonl", [{"step": 899, "validation_loss": 1.5, "gap": 0.2}])
    write_rows(
        tmp_path / "ar/metrics.jsonl",
        [{"step": n, "fve_gold": n / 10, "fve_round_trip": n / 20} for n in (2, 4)],
    )
    later = [{"step": 3, "fve_gold": 0.6, "fve_round_trip": 0.4}]
    write_rows(tmp_path / "expert/round-1/ar/metrics.jsonl", later)
    write_plot(tmp_path)
    root = ET.fromstring((tmp_path / "run.svg").read_text())
    space = "{http://www.w3.org/2000/svg}"
    said = {t.text for t in root.iter(f"{space}text")}
    assert {"training loss", "validation loss", "gap", "fve gold", "fve round trip", "7"} <= said
    lines = [p.get("points", "").split() for p in root.iter(f"{space}polyline")]
    assert max(map(len, lines)) <= 300
    assert sorted(map(len, lines))[-3:-1] == [3, 3]


def test_a_run_without_metrics_has_an_empty_plot(tmp_path: Path) -> None:
    write_plot(tmp_path)
    assert ET.fromstring((tmp_path / "run.svg").read_text()).tag.endswith("svg")
