"""Tiny models, a listener that keeps everything, and the comparison with hidden states."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nae_monitor.records import Phase, Request, RowBatch

VOCABULARY = 96
PAD = 0
EOS = 1
LAYER = 3
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": EOS,
    "initializer_range": 0.1,  # positions and layers differ by far more than rounding
}


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def qwen2() -> Any:
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE))


def gemma3() -> Any:
    kinds = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
    config = Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=6, layer_types=kinds)
    return Gemma3ForCausalLM(config)


MAKERS = {"llama": llama, "qwen2": qwen2, "gemma3": gemma3}


def make(name: str) -> Any:
    torch.manual_seed(7)
    return MAKERS[name]().float().eval()


def assert_untouched(model: Any) -> None:
    """No hook and no patch of ours is left; transformers keeps hooks of its own."""
    assert "generate" not in model.__dict__
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    assert not [hook for hook in hooks if "TransformersTap" in getattr(hook, "__qualname__", "")]


class Recorder:
    """Keeps everything a tap tells."""

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self.prompts: dict[str, list[int]] = {}
        self.completions: dict[str, list[int]] = {}
        self.rows_of: dict[str, list[tuple[int, int, Phase, torch.Tensor]]] = defaultdict(list)
        self.events: list[tuple[str, str]] = []
        self.finished: list[str] = []

    def request_started(self, request: Request, prompt_token_ids: tuple[int, ...]) -> None:
        self.events.append(("started", request.request_id))
        self.requests[request.request_id] = request
        self.prompts[request.request_id] = list(prompt_token_ids)
        self.completions[request.request_id] = []

    def rows(self, batch: RowBatch) -> None:
        assert len(batch) == len(batch.vectors) == len(batch.request_index) > 0
        assert batch.layer == LAYER
        for i, index in enumerate(batch.request_index):
            row = (batch.positions[i], batch.token_ids[i], batch.phases[i], batch.vectors[i])
            self.rows_of[batch.requests[index].request_id].append(row)
        self.events.extend(("rows", r.request_id) for r in batch.requests)

    def tokens(self, request_id: str, token_ids: tuple[int, ...]) -> None:
        assert token_ids
        self.events.append(("tokens", request_id))
        self.completions[request_id] += token_ids

    def request_finished(self, request_id: str) -> None:
        self.events.append(("finished", request_id))
        self.finished.append(request_id)

    def sequence(self, request_id: str) -> list[int]:
        return self.prompts[request_id] + self.completions[request_id]

    def positions(self, request_id: str) -> list[int]:
        return [row[0] for row in self.rows_of[request_id]]


def check_rows(model: Any, recorder: Recorder, *, every: bool = True) -> int:
    """Compare each row with an ordinary forward pass over its final sequence, without padding.

    With ``every``, each request must have each position but perhaps the last, once and in order.
    Returns how many rows were compared.
    """
    compared = 0
    for request_id in recorder.prompts:
        sequence = recorder.sequence(request_id)
        rows = recorder.rows_of[request_id]
        with torch.no_grad():
            output = model(torch.tensor([sequence]), output_hidden_states=True, use_cache=False)
        expected = output.hidden_states[LAYER][0]
        for position, token, phase, vector in rows:
            assert token == sequence[position]
            in_prompt = position < len(recorder.prompts[request_id])
            assert phase is (Phase.PROMPT if in_prompt else Phase.COMPLETION)
            torch.testing.assert_close(vector, expected[position], atol=1e-4, rtol=0)
            compared += 1
        if every:
            positions = [row[0] for row in rows]
            assert positions == list(range(len(positions)))
            assert len(positions) in (len(sequence) - 1, len(sequence))
    return compared


def left_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(len(p) for p in prompts)
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(p)) + p for p in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }


def visible(row: torch.Tensor, width: int, eos: int | None = EOS) -> list[int]:
    """The completion of an output row up to and including its first end-of-sequence token."""
    completion = row[width:].tolist()
    return completion[: completion.index(eos) + 1] if eos in completion else completion
