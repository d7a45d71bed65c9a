"""A start-up test of the tap: what it captures against what the model says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nae_monitor.capture.blocks import inner_model
from nae_monitor.capture.context import request_scope
from nae_monitor.capture.transformers_tap import TransformersTap
from nae_monitor.errors import UnsupportedError
from nae_monitor.health import Health
from nae_monitor.records import Request, RowBatch
from nae_monitor.settings import CaptureSettings

PROMPT_TOKENS = 12
NEW_TOKENS = 3
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative; wider below for half precision
HALF_TOLERANCE = 0.1
INSTALLED = "_output_capturing_hooks_installed"  # transformers' mark on a model that has its hooks


class _Collector:
    """A listener that keeps rows and tokens."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.vectors: list[torch.Tensor] = []

    def request_started(self, request: Request, prompt_token_ids: tuple[int, ...]) -> None:
        self.token_ids += prompt_token_ids

    def rows(self, batch: RowBatch) -> None:
        self.vectors.append(batch.vectors)

    def tokens(self, request_id: str, token_ids: tuple[int, ...]) -> None:
        self.token_ids += token_ids

    def request_finished(self, request_id: str) -> None:
        pass


def self_test(model: Any, tokenizer: Any, *, layer: int) -> float:
    """Generate a few tokens under a tap and compare every row with ``hidden_states[layer]``.

    Call it before the model serves: it runs ``generate`` once and one plain forward pass.

    Returns:
        The largest difference between a captured row and its reference, as a share of the
        reference's length.

    Raises:
        UnsupportedError: rows are missing (a compiled model that hooks do not reach) or differ.
        ConfigurationError: ``layer`` is out of range.
    """
    collector, target = _Collector(), inner_model(model)
    tap = TransformersTap(
        model,
        tokenizer,
        layer=layer,
        settings=CaptureSettings(min_position=0),
        listener=collector,
        health=Health(),
        model_name="self-test",
    )
    vocabulary = target.config.get_text_config().vocab_size
    prompt = (torch.arange(PROMPT_TOKENS) * 37 + 11).remainder(vocabulary)[None].to(target.device)
    with tap, request_scope("self-test"):
        target.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
    expected = _reference(target, collector.token_ids[:-1], layer)
    captured = sum(len(rows) for rows in collector.vectors)
    if captured != len(expected):
        raise UnsupportedError(
            f"self-test: {captured} of {len(expected)} rows captured from {type(target).__name__}: "
            "is it compiled? Attach before the first compiled call, or do not compile"
        )
    rows = torch.cat([part.to(expected.device) for part in collector.vectors]).float()
    lengths = torch.linalg.vector_norm(expected, dim=-1).clamp_min(1e-12)
    error = float((torch.linalg.vector_norm(rows - expected, dim=-1) / lengths).max())
    if not error <= TOLERANCE.get(target.dtype, HALF_TOLERANCE):
        raise UnsupportedError(
            f"self-test: rows captured from {type(target).__name__} differ from its hidden states "
            f"by {error:.2g} of their length"
        )
    return error


def _reference(model: Any, token_ids: list[int], layer: int) -> torch.Tensor:
    """``hidden_states[layer]`` of one plain pass, float32 ``[n, d]``."""
    ids = torch.tensor([token_ids], device=model.device)
    with torch.no_grad(), _left_as_it_was(model):
        output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    states: torch.Tensor = output.hidden_states[layer][0]
    return states.float()


@contextmanager
def _left_as_it_was(model: Any) -> Iterator[None]:
    """Take back the hooks that transformers sets for ``output_hidden_states``.

    It sets two a block with the first such pass and leaves them for good, and every later step of
    the host would pay for them.
    """
    before = [(module, set(module._forward_hooks), INSTALLED in vars(module))
              for module in model.modules()]  # fmt: skip
    try:
        yield
    finally:
        for module, kept, was_marked in before:
            hooks = module._forward_hooks
            for key in [key for key in hooks if key not in kept]:
                if str(getattr(hooks[key], "__module__", "")).startswith("transformers."):
                    del hooks[key]
            if not was_marked:
                vars(module).pop(INSTALLED, None)
