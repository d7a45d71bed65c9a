"""What the tests of a real vLLM share: an engine's run, and the rows it must have told."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nae_monitor.models import load_target

RUN = Path(__file__).with_name("vllm_engine_run.py")
LAYER, D_MODEL = 20, 576
TOLERANCE = 2e-5  # of a row's length; float32 on both sides
ENGINE = {
    "dtype": "float32", "max_model_len": 512, "block_size": 32,
    "distributed_executor_backend": "uni", "enforce_eager": True, "seed": 0,
}  # fmt: skip


# A whole monitor inside the engine, which records every row and alerts on every request.
CONFIG = """
capture: {{min_position: 0, vector_dtype: float32}}
nla: {{max_new_tokens: 4, batch_size: 32}}
screen: {{every_n_tokens: 1, budget: {{decodes_per_s: 1000, per_request: 10000}}}}
detect: {{rules: [{folder}/rule.yaml], encoder: null}}
alert: {{sinks: [{{jsonl: {folder}/alerts.jsonl}}]}}
record: {{dir: {folder}/recordings}}
privacy: {{content: full}}
"""
# The same by a worker, which decodes so little that a server on the same processors goes on.
WORKER_CONFIG = """
capture: {{min_position: 0, placement: ipc}}
nla: {{max_new_tokens: 4}}
screen: {{every_n_tokens: 1, budget: {{decodes_per_s: 2, per_request: 10000}}}}
detect: {{rules: [{folder}/rule.yaml], encoder: null}}
alert: {{sinks: [{{jsonl: {folder}/alerts.jsonl}}]}}
record: {{dir: {folder}/recordings}}
privacy: {{content: full}}
ipc: {{endpoints: ["ipc://{folder}/run/w.sock"], connect_s: 300, liveness_s: 60}}
"""
RULE = """
schema_version: 1
title: Anything at all
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e77
name: anything
version: 1
status: stable
severity: high
description: Matches every prompt, so that an alert must come.
author: tests
date: 2026-01-01
tags: [tests.vllm]
scope: {phase: [prompt, completion], min_token_index: 0}
detection:
  any: {field: prompt, regex: ['(?s).']}
  condition: any
"""


def write_configuration(folder: Path, text: str = CONFIG) -> Path:
    """``monitor.yaml`` of a monitor that keeps everything under ``folder``."""
    (folder / "rule.yaml").write_text(RULE.lstrip())
    path = folder / "monitor.yaml"
    path.write_text(text.format(folder=folder))
    return path


@dataclass(frozen=True)
class Told:
    """What the plugin told of one request."""

    request_id: str
    prompt: list[int]
    output: list[int]
    answer: list[int] | None  # as the engine's caller got it; None: aborted
    positions: list[int]
    ids: list[int]
    phases: list[str]
    vectors: torch.Tensor  # [n, d]
    end: int
    stopped: bool | None  # None: no rule asked for it
    cached: int
    seen: int


@dataclass(frozen=True)
class Result:
    """One engine's run."""

    told: list[Told]
    counters: dict[str, int]
    doubled: int
    closed: bool

    def one(self, prefix: str) -> Told:
        """The request whose id begins so."""
        (found,) = [t for t in self.told if t.request_id.startswith(f"{prefix}-")]
        return found


@cache
def target() -> Any:
    return load_target("smollm2-135m-instruct")


def reference(token_ids: list[int]) -> torch.Tensor:
    """``hidden_states[20]`` by transformers, ``[n, d]``."""
    with torch.no_grad():
        output = target().model(torch.tensor([token_ids]), output_hidden_states=True)
    states: torch.Tensor = output.hidden_states[LAYER][0]
    return states


def error_of(told: Told) -> float:
    """The largest difference of a row from its reference, as a share of its length."""
    expected = reference(told.prompt + told.output)[told.positions]
    difference = torch.linalg.vector_norm(told.vectors - expected, dim=-1)
    return float((difference / torch.linalg.vector_norm(expected, dim=-1)).max())


def assert_exact(told: Told) -> None:
    """Every computed token once, in order, with its vector, token and phase."""
    sequence = told.prompt + told.output
    assert told.positions == list(range(told.cached, len(sequence) - 1))
    assert told.ids == [sequence[p] for p in told.positions]
    assert told.phases == [
        "prompt" if p < len(told.prompt) else "completion" for p in told.positions
    ]
    assert told.seen == len(sequence) - 1
    assert told.end == 1
    assert error_of(told) < TOLERANCE


def environment(config: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ, "NAE_MONITOR_CONFIG": str(config), "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", **more,
    }  # fmt: skip


def unpacked(result: dict[str, Any]) -> Result:
    told = []
    for one in result.pop("told"):
        raw = np.frombuffer(base64.b64decode(one.pop("rows")), dtype=np.float32)
        told.append(Told(**one, vectors=torch.from_numpy(raw.reshape(-1, D_MODEL).copy())))
    return Result(told, **result)
