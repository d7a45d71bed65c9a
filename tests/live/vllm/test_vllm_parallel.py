"""Engines of several processes: every rank taps, the first one reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_live import TOLERANCE, Result, reference, write_configuration

from nae_monitor.recording import Recording

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]
PROMPTS = [
    {"prompt": "The capital of France is", "max_tokens": 12},
    {"prompt": "Once upon a time there was a little robot who", "max_tokens": 12},
]


def test_tensor_parallel_ranks_record_each_row_once_and_exactly(
    run_engine: Callable[..., Any], tmp_path: Path
) -> None:
    config = write_configuration(tmp_path).read_text()
    result = run_engine(
        [PROMPTS],
        config,
        whole_monitor=True,
        variables={"VLLM_CPU_OMP_THREADS_BIND": "0|1|1"},
        distributed_executor_backend="mp",
        tensor_parallel_size=3,  # SmolLM2 has 9 heads
    )
    assert isinstance(result, Result), result
    (folder,) = (tmp_path / "recordings").iterdir()
    recording = Recording.open(folder)
    rows = list(recording.activations())
    requests = {record.request.request_id: record for record in recording.requests()}
    assert len(requests) == len(PROMPTS)
    for name, record in requests.items():
        tokens = [*(record.prompt_token_ids or ()), *(record.output_token_ids or ())]
        states = reference(tokens)
        own = [row.activation for row in rows if row.activation.request.request_id == name]
        assert sorted(one.position for one in own) == list(range(len(tokens) - 1))
        for one in own:
            error = torch.linalg.vector_norm(one.vector - states[one.position])
            assert error / torch.linalg.vector_norm(states[one.position]) < TOLERANCE


def test_pipeline_parallelism_is_refused_with_the_reason(run_engine: Callable[..., Any]) -> None:
    result = run_engine(
        [PROMPTS],
        variables={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        distributed_executor_backend="mp",
        pipeline_parallel_size=2,
    )
    assert isinstance(result, str)
    assert "--pipeline-parallel-size: the watched block is on one rank" in result
