"""Doubles of vLLM's two model runners, with the few fields the plugin reads, and a scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from nae_monitor.records import Request, RowBatch

D_MODEL = 4
EOS = 99


def vector(token_id: int, position: int) -> list[float]:
    """What the doubles' model computes: a row that names its token and its position."""
    return [float(token_id), float(position), 1.0, 0.0]


@dataclass
class Scheduled:
    """One request's share of a step."""

    request_id: str
    start: int
    tokens: list[int]


@dataclass
class Step:
    """What a scheduler hands to a worker."""

    shares: list[Scheduled] = field(default_factory=list)
    new: list[Any] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)

    @property
    def output(self) -> Any:
        counts = {share.request_id: len(share.tokens) for share in self.shares}
        return SimpleNamespace(
            num_scheduled_tokens=counts,
            total_num_scheduled_tokens=sum(counts.values()),
            finished_req_ids=self.finished,
            scheduled_new_reqs=self.new,
        )


def new_request(
    request_id: str,
    prompt: list[int],
    cached: int = 0,
    stop: frozenset[int] = frozenset(),
    extra_args: dict[str, Any] | None = None,
) -> Any:
    """As vLLM's ``NewRequestData``."""
    params = SimpleNamespace(
        extra_args=extra_args, ignore_eos=False, stop_token_ids=[], eos_token_id=None,
        all_stop_token_ids=set(stop),
    )  # fmt: skip
    return SimpleNamespace(
        req_id=request_id, prompt_token_ids=prompt, prompt_len=len(prompt),
        num_computed_tokens=cached, sampling_params=params,
    )  # fmt: skip


class FirstRunner:
    """V1: one batch that lasts, in an order of its own."""

    def __init__(self, buffer: torch.Tensor) -> None:
        self.buffer = buffer
        self.input_ids = SimpleNamespace(gpu=torch.zeros(len(buffer), dtype=torch.int32))
        self.input_batch = SimpleNamespace(req_ids=[], num_reqs=0, num_computed_tokens_cpu=None)

    def run(self, step: Step) -> None:
        self.input_batch = SimpleNamespace(
            req_ids=[share.request_id for share in step.shares] + [None],
            num_reqs=len(step.shares),
            num_computed_tokens_cpu=np.array([share.start for share in step.shares] + [0]),
        )
        _forward(step, self.input_ids.gpu, self.buffer)


class SecondRunner:
    """V2: a batch for each pass; its counts are an upper bound."""

    def __init__(self, buffer: torch.Tensor) -> None:
        self.buffer = buffer
        self.req_states = SimpleNamespace()
        self.execute_model_state: Any = None
        self._ids = torch.zeros(len(buffer), dtype=torch.int32)

    def run(self, step: Step) -> None:
        starts = np.cumsum([0, *(len(share.tokens) for share in step.shares)])
        batch = SimpleNamespace(
            req_ids=[share.request_id for share in step.shares],
            num_reqs=len(step.shares),
            num_scheduled_tokens=np.diff(starts) + 1,
            query_start_loc_np=np.append(starts, starts[-1]).astype(np.int32),
            num_computed_tokens_np=np.array([share.start for share in step.shares]),
            input_ids=self._ids,
        )
        self.execute_model_state = SimpleNamespace(input_batch=batch)
        _forward(step, self._ids, self.buffer)


def _forward(step: Step, ids: torch.Tensor, buffer: torch.Tensor) -> None:
    row = 0
    for share in step.shares:
        for number, token in enumerate(share.tokens):
            ids[row] = token
            buffer[row] = torch.tensor(vector(token, share.start + number))
            row += 1


class Collector:
    """A listener and host that keeps what it was told; ``faults`` names methods that raise."""

    layer, d_model = 2, D_MODEL

    def __init__(self, health: Any) -> None:
        self.health = health
        self.listener = self
        self.requests: dict[str, Request] = {}
        self.prompts: dict[str, tuple[int, ...]] = {}
        self.outputs: dict[str, list[int]] = {}
        self.told: dict[str, list[tuple[int, int, str, list[float]]]] = {}
        self.ended: list[str] = []
        self.faults: set[str] = set()
        self.closed = False
        self.to_stop: set[str] = set()
        self.stopped: dict[str, bool] = {}

    def should_stop(self, request_id: str) -> bool:
        return request_id in self.to_stop and request_id not in self.stopped

    def confirm_stop(self, request_id: str, *, ended: bool) -> None:
        self.stopped[request_id] = ended

    def request_started(self, request: Request, prompt_token_ids: tuple[int, ...]) -> None:
        name = request.request_id
        self.requests[name], self.prompts[name] = request, prompt_token_ids
        self.outputs[name], self.told[name] = [], []

    def tokens(self, request_id: str, token_ids: tuple[int, ...]) -> None:
        self.outputs[request_id] += token_ids

    def rows(self, batch: RowBatch) -> None:
        if "rows" in self.faults:
            raise RuntimeError("a listener's own fault")
        for row, index in enumerate(batch.request_index):
            self.told[batch.requests[index].request_id].append(
                (
                    batch.positions[row],
                    batch.token_ids[row],
                    batch.phases[row].value,
                    batch.vectors[row].tolist(),
                )
            )

    def request_finished(self, request_id: str) -> None:
        self.ended.append(request_id)

    def close(self) -> None:
        self.closed = True
