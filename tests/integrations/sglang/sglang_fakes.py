"""Doubles of SGLang 0.5.23: the classes the plugin hooks, with the fields that it reads.

Their shapes are those of the real ones: blocks hand on what is not yet the residual stream, a
batch's tokens come from the last pass without the CPU, and under the overlap schedule the next
pass is launched before the last one's result is looked at.
"""

from __future__ import annotations

import functools
import sys
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

D_MODEL, BLOCKS, LAYER, VOCAB, EOS = 6, 4, 2, 97, 96


class Block(torch.nn.Module):
    """Returns what is yet to be added to the stream, which lies in the batch."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.1 * (number + 1)))

    def forward(
        self, positions: Any, hidden: torch.Tensor, batch: Any, capture_output: Any = None
    ) -> torch.Tensor:
        stream = hidden if batch.residual is None else batch.residual + hidden
        batch.residual = stream
        if capture_output is not None:
            capture_output(stream, owned=False)
        return torch.sin(stream) * self.scale + positions[:, None] * 0.01


class OldBlock(Block):
    def forward(self, positions: Any, hidden: torch.Tensor, batch: Any) -> torch.Tensor:
        return super().forward(positions, hidden, batch)


class Model(torch.nn.Module):
    def __init__(self, block: type[Block] = Block) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(VOCAB, D_MODEL)
        self.layers = torch.nn.ModuleList(block(number) for number in range(BLOCKS))

    @torch.no_grad()
    def forward(self, ids: torch.Tensor, positions: torch.Tensor, batch: Any) -> torch.Tensor:
        hidden, batch.residual = self.embed(ids), None
        for layer in self.layers:
            hidden = layer(positions, hidden, batch)
        final = batch.residual + hidden
        return (final.abs().sum(-1) * 1000).long() % (VOCAB - 1)


@torch.no_grad()
def hidden_states(model: Model, token_ids: Sequence[int], layer: int = LAYER) -> torch.Tensor:
    """The stream behind ``layer`` blocks, worked out by itself."""
    stream = model.embed(torch.tensor(list(token_ids)))
    positions = torch.arange(len(stream))[:, None]
    for block in list(model.layers)[:layer]:
        stream = stream + torch.sin(stream) * block.scale + positions * 0.01
    return stream


class ModelRunner:
    is_generation = True
    decode_cuda_graph_runner: Any = None

    def __init__(self, model: Model, *, is_draft_worker: bool = False) -> None:
        self.loaded = model
        self.is_draft_worker = is_draft_worker
        self.spec_algorithm = SimpleNamespace(is_none=lambda: True)
        self.skips_block = False  # a graph that was captured without the tap
        self.model_config = SimpleNamespace(
            hidden_size=D_MODEL, num_hidden_layers=BLOCKS, dtype=torch.float32,
            is_encoder_decoder=False,
        )  # fmt: skip

    def load_model(self) -> None:
        self.model = self.loaded

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        tapped = vars(self.model.layers[LAYER]).pop("forward", None) if self.skips_block else None
        try:
            return self.model(ids, positions, SimpleNamespace())
        finally:
            if tapped is not None:
                self.model.layers[LAYER].forward = tapped


class TpModelWorker:
    def __init__(self, runner: ModelRunner) -> None:
        self.model_runner = runner

    def forward_batch_generation(self, batch: Any, forward_batch: Any = None) -> torch.Tensor:
        ends, counts = batch.seq_lens_cpu.tolist(), batch.counts
        spans = zip(ends, counts, strict=True)
        positions = torch.cat([torch.arange(end - count, end) for end, count in spans])
        return self.model_runner.forward(batch.input_ids, positions)


@dataclass(eq=False)
class Req:
    rid: str
    prompt: Sequence[int]
    max_new_tokens: int = 8
    stop: frozenset[int] = frozenset({EOS})
    custom_params: dict[str, Any] | None = None
    session_id: str | None = None
    input_embeds: Any = None
    multimodal_inputs: Any = None
    beam_group: Any = None
    eos_token_ids: Any = None
    tokenizer: Any = None
    prefix_len: int = 0  # out of the radix cache
    output_ids: array[int] = field(default_factory=lambda: array("q"))
    is_retracted: bool = False
    finished_reason: Any = None
    to_finish: Any = None

    def __post_init__(self) -> None:
        self.origin_input_ids = array("q", self.prompt)
        self.computed = self.prefix_len
        self.sampling_params = SimpleNamespace(
            custom_params=self.custom_params, ignore_eos=not self.stop,
            stop_token_ids=set(self.stop) or None,
        )  # fmt: skip

    def finished(self) -> bool:
        return self.finished_reason is not None

    @property
    def fill_ids(self) -> list[int]:
        return [*self.origin_input_ids, *self.output_ids]

    def update_finish_state(self) -> None:
        if self.to_finish is not None:
            self.finished_reason = self.to_finish
        elif self.output_ids[-1] in self.stop:
            self.finished_reason = "stop"
        elif len(self.output_ids) >= self.max_new_tokens:
            self.finished_reason = "length"


class Mode:
    def __init__(self, name: str) -> None:
        self.name = name

    def is_decode(self) -> bool:
        return self.name == "decode"

    def is_extend(self) -> bool:
        return self.name in ("extend", "mixed")


@dataclass(eq=False)
class ScheduleBatch:
    reqs: list[Req]
    forward_mode: Mode
    extend_lens: list[int] | None
    seq_lens_cpu: torch.Tensor
    input_ids: torch.Tensor | None
    counts: list[int]
    middle: list[bool]  # a chunk that is not the prompt's last


class Scheduler:
    """``overlap`` as SGLang's default loop; ``chunk`` the tokens of a prefill pass."""

    runner_class: type[ModelRunner] = ModelRunner
    worker_class: type[TpModelWorker] = TpModelWorker

    def __init__(
        self,
        model: Model | None = None,
        *,
        overlap: bool = True,
        chunk: int = 64,
        mixed: bool = False,
    ) -> None:
        self.overlap, self.chunk, self.mixed = overlap, chunk, mixed
        self.tokenizer = None
        self.waiting: deque[Req] = deque()
        self.running: list[Req] = []
        self.retracted: list[tuple[Req, int]] = []
        self.next_tokens: dict[Req, torch.Tensor] = {}
        self.on_step: Callable[[int], None] = lambda step: None
        self.runner = self.runner_class(model or Model())
        self.tp_worker = self.worker_class(self.runner)
        self.init_model_worker()

    def init_model_worker(self) -> None:
        self.runner.load_model()

    def add(self, *requests: Req) -> None:
        self.waiting.extend(requests)

    def run_event_loop(self) -> None:
        queue: deque[tuple[ScheduleBatch, torch.Tensor]] = deque()
        step = 0
        while self.waiting or self.running or self.retracted or queue:
            self.on_step(step)
            step += 1
            batch = self._next_batch()
            if batch is not None:
                queue.append((batch, self._run(batch)))
            if queue and (batch is None or not self.overlap or len(queue) > 1):
                self.process_batch_result(*queue.popleft())
            self._requeue()

    def _requeue(self) -> None:
        for request, cached in self.retracted:
            request.computed = min(cached, len(request.fill_ids) - 1)
            self.waiting.append(request)
        self.retracted.clear()

    def process_batch_result(self, batch: ScheduleBatch, result: torch.Tensor) -> None:
        for request, token, middle in zip(batch.reqs, result.tolist(), batch.middle, strict=True):
            if request.finished() or request.is_retracted or middle:
                continue
            request.output_ids.append(token)
            request.update_finish_state()
        self.running = [request for request in self.running if not request.finished()]

    def send_abort_output(self, abort: Any, request: Req) -> None: ...

    def retract(self, request: Req, cached: int) -> None:
        """Put a running request back; its last pass's token is lost, some of its prefix is kept."""
        self.running.remove(request)
        request.is_retracted = True
        self.retracted.append((request, cached))

    def abort_queued(self, request: Req) -> None:
        self._requeue()
        self.waiting.remove(request)
        self.send_abort_output(SimpleNamespace(rid=request.rid), request)

    def _next_batch(self) -> ScheduleBatch | None:
        if self.waiting:
            return self._extend(self.waiting[0])
        requests = [r for r in self.running if not r.finished()]
        if not requests:
            return None
        for request in requests:
            request.computed += 1
        counts = [1] * len(requests)
        ids = torch.cat([self.next_tokens[r] for r in requests])
        return self._batch("decode", requests, counts, ids, [False] * len(requests))

    def _extend(self, request: Req) -> ScheduleBatch:
        request.is_retracted = False
        fill = request.fill_ids
        count = min(self.chunk, len(fill) - request.computed)
        ids = [torch.tensor(fill[request.computed : request.computed + count])]
        request.computed += count
        requests, counts = [request], [count]
        middle = [request.computed < len(fill)]
        others = [r for r in self.running if not r.finished()] if self.mixed else []
        for other in others:
            other.computed += 1
            ids.append(self.next_tokens[other])
        if not middle[0]:
            self.waiting.popleft()
            self.running.append(request)
        return self._batch(
            "mixed" if others else "extend",
            requests + others,
            counts + [1] * len(others),
            torch.cat(ids),
            middle + [False] * len(others),
        )

    def _batch(
        self, name: str, requests: list[Req], counts: list[int], ids: torch.Tensor, middle: Any
    ) -> ScheduleBatch:
        ends = torch.tensor([request.computed for request in requests])
        lens = None if name == "decode" else counts
        return ScheduleBatch(requests, Mode(name), lens, ends, ids, counts, middle)

    def _run(self, batch: ScheduleBatch) -> torch.Tensor:
        sampled = self.tp_worker.forward_batch_generation(batch)
        batch.input_ids = None
        last = torch.tensor(batch.counts).cumsum(0) - 1
        tokens = sampled[last]
        for index, request in enumerate(batch.reqs):
            self.next_tokens[request] = tokens[index : index + 1]
        return tokens


class TokenizerManager:
    def generate_request(self, obj: Any, request: Any = None) -> Any:
        return obj.sampling_params


class HookType:
    AROUND = "around"


class HookRegistry:
    """As SGLang's: targets by name, applied when all plugins are loaded."""

    def __init__(self) -> None:
        self.hooks: dict[str, list[tuple[Callable[..., Any], str]]] = {}

    def register(self, target: str, hook: Callable[..., Any], hook_type: str) -> None:
        self.hooks.setdefault(target, []).append((hook, hook_type))

    def apply_hooks(self) -> None:
        for target, hooks in self.hooks.items():
            *path, class_name, name = target.split(".")
            owner = getattr(sys.modules[".".join(path)], class_name)
            for hook, _ in hooks:
                setattr(owner, name, functools.partialmethod(_around, getattr(owner, name), hook))


def _around(self: Any, plain: Any, hook: Any, *args: Any, **kwargs: Any) -> Any:
    return hook(plain, self, *args, **kwargs)


def install(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> SimpleNamespace:
    """An ``sglang`` in ``sys.modules``; ``changes`` are of its configuration, by dotted name.

    Returns:
        Its registry and its classes, which are fresh.
    """
    values: dict[str, Any] = {
        "parallel.tp_rank": 0, "parallel.pp_size": 1, "parallel.attn_cp_size": 1,
        "parallel.attn_dp_enabled": False, "parallel.enable_attn_tp_input_scattered": False,
        "parallel.enable_layernorm_sp": False, "schedule.max_running_requests": 16,
        "disagg.disaggregation_mode": "null", "disagg.enable_pdmux": False,
        "exec.overlap.enable_two_batch_overlap": False, "exec.dllm.dllm_algorithm": None,
        "exec.features.enable_encoder_swa_bounded_replay": False,
        "serving.skip_tokenizer_init": False, "prefill": 64,
    } | {name.replace("__", "."): value for name, value in changes.items()}  # fmt: skip
    tree = SimpleNamespace()
    for name, value in values.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            vars(node).setdefault(part, SimpleNamespace())
            node = getattr(node, part)
        setattr(node, last, value)
    double = SimpleNamespace(
        registry=HookRegistry(),
        **{c.__name__: type(c.__name__, (c,), {}) for c in
           (Scheduler, ModelRunner, TpModelWorker, TokenizerManager)},
    )  # fmt: skip
    double.Scheduler.runner_class = double.ModelRunner
    double.Scheduler.worker_class = double.TpModelWorker
    groups = ("parallel", "schedule", "disagg", "exec", "serving")
    modules: dict[str, dict[str, Any]] = {
        "sglang": {}, "sglang.srt": {}, "sglang.srt.plugins": {},
        "sglang.srt.plugins.hook_registry": {
            "HookRegistry": double.registry, "HookType": HookType},
        "sglang.srt.runtime_context": {
            **{f"get_{g}": functools.partial(getattr, tree, g) for g in groups},
            "max_prefill_buffer_tokens": lambda: tree.prefill},
        "sglang.srt.managers": {}, "sglang.srt.model_executor": {},
        "sglang.srt.managers.scheduler": {"Scheduler": double.Scheduler},
        "sglang.srt.managers.tp_worker": {"TpModelWorker": double.TpModelWorker},
        "sglang.srt.managers.tokenizer_manager": {"TokenizerManager": double.TokenizerManager},
        "sglang.srt.model_executor.model_runner": {"ModelRunner": double.ModelRunner},
    }  # fmt: skip
    for name, content in modules.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    return double
