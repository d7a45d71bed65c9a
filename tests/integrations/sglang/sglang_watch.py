"""A watched double of SGLang, and a host that keeps what it is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sglang_fakes as sgl
import torch

from nae_monitor.health import Health
from nae_monitor.integrations.engines import hosts
from nae_monitor.integrations.engines.switch import SWITCH
from nae_monitor.integrations.sglang import engine, register
from nae_monitor.records import Request, RowBatch


class Listener:
    """Keeps rows as (position, token id, vector) by request."""

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self.prompts: dict[str, tuple[int, ...]] = {}
        self.outputs: dict[str, list[int]] = {}
        self.told: dict[str, list[tuple[int, int, torch.Tensor]]] = {}
        self.ended: list[str] = []

    def request_started(self, request: Request, prompt_token_ids: tuple[int, ...]) -> None:
        name = request.request_id
        self.requests[name], self.prompts[name] = request, prompt_token_ids
        self.outputs[name], self.told[name] = [], []

    def tokens(self, request_id: str, token_ids: tuple[int, ...]) -> None:
        self.outputs[request_id] += token_ids

    def rows(self, batch: RowBatch) -> None:
        for row, index in enumerate(batch.request_index):
            told = self.told[batch.requests[index].request_id]
            told.append((batch.positions[row], batch.token_ids[row], batch.vectors[row]))

    def request_finished(self, request_id: str) -> None:
        self.ended.append(request_id)


class Host:
    layer, d_model = sgl.LAYER, sgl.D_MODEL

    def __init__(self, listener: Any) -> None:
        self.listener = listener
        self.health = Health()
        self.closed = False

    def should_stop(self, request_id: str) -> bool:
        return False

    def confirm_stop(self, request_id: str, *, ended: bool) -> None: ...

    def close(self) -> None:
        self.closed = True


def configuration(tmp_path: Path, text: str = "") -> Path:
    path = tmp_path / "monitor.yaml"
    path.write_text(text or "capture: {min_position: 0}\n")
    return path


def watch(
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    listener: Any,
    fit: tuple[int, int] = (sgl.LAYER, sgl.D_MODEL),
    **changes: Any,
) -> SimpleNamespace:
    """SGLang's double with the plugin's hooks applied; ``host`` is what a start opens."""
    double = sgl.install(monkeypatch, **changes)
    monkeypatch.setenv(SWITCH, str(path))
    monkeypatch.setattr(register, "_registered", False)
    double.host = Host(listener)
    double.opened = []
    monkeypatch.setattr(
        hosts, "open_host", lambda *_: double.opened.append(double.host) or double.host
    )
    monkeypatch.setattr(engine, "layer_of", lambda settings: fit)
    register.register()
    double.registry.apply_hooks()
    return double
