"""Start-up test of the tap: what it writes against what the block says outside the graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nae_monitor.errors import UnsupportedError
from nae_monitor.integrations.engines.buffer import write
from nae_monitor.integrations.vllm.tap import Mode, Tap

TOKENS = 16
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the row's length
HALF_TOLERANCE = 0.1


def self_test(tap: Tap, config: Any, mode: Mode, *, compiled: bool) -> float:
    """Run the model once as it serves, once eagerly beside a plain hook, and compare every row.

    No request is needed and none is touched: attention is left out, and so is its cache. Every
    tensor-parallel rank must call it, for the passes talk to each other.

    Args:
        tap: installed.
        config: the ``VllmConfig``.
        mode: of the tap, for messages.
        compiled: take the compiled graph, where there is one.

    Returns:
        The largest difference of a row from its reference, as a share of the reference's length.

    Raises:
        UnsupportedError: rows are missing, or differ.
    """
    with torch.inference_mode():
        expected = _reference(tap, config)
        tap.rows[:TOKENS].fill_(float("nan"))
        _run(tap, config, skip_compiled=not compiled)
        found = tap.rows[:TOKENS].float()
    missing = int(found.isnan().any(dim=-1).sum())
    name = type(tap.model).__name__
    if missing:
        raise UnsupportedError(
            f"self-test: {missing} of {TOKENS} rows of {name} were not captured by {mode}"
            + ("; the compiled graph does not reach it" if compiled else "")
        )
    lengths = torch.linalg.vector_norm(expected, dim=-1).clamp_min(1e-12)
    error = float((torch.linalg.vector_norm(found - expected, dim=-1) / lengths).max())
    if not error <= TOLERANCE.get(tap.rows.dtype, HALF_TOLERANCE):
        raise UnsupportedError(
            f"self-test: rows of {name} captured by {mode} differ from the block's output by "
            f"{error:.2g} of their length"
        )
    return error


def _reference(tap: Tap, config: Any) -> torch.Tensor:
    """The block's output in an eager pass, float32 ``[TOKENS, d]``."""
    rows = torch.full_like(tap.rows[:TOKENS], float("nan"))
    handle = tap.block.register_forward_hook(lambda _, __, output: write(output, rows))
    try:
        _run(tap, config, skip_compiled=True)
    finally:
        handle.remove()
    if bool(rows.isnan().any()):
        raise UnsupportedError(f"self-test: {type(tap.block).__name__} gave no rows")
    return rows.float()


def _run(tap: Tap, config: Any, *, skip_compiled: bool) -> None:
    from vllm.forward_context import set_forward_context

    device = tap.rows.device
    vocabulary = config.model_config.get_vocab_size()
    # As many different tokens as there are rows, so that rows out of order show.
    ids = (torch.arange(TOKENS, device=device) * 37 + 11).remainder(vocabulary).to(torch.int32)
    positions = torch.arange(TOKENS, device=device)
    if config.model_config.uses_mrope:
        positions = positions.expand(3, TOKENS).contiguous()
    with (
        _silent_attention(config),
        set_forward_context(None, config, num_tokens=TOKENS, skip_compiled=skip_compiled),
    ):
        tap.model(input_ids=ids, positions=positions, intermediate_tensors=None, inputs_embeds=None)


@contextmanager
def _silent_attention(config: Any) -> Iterator[None]:
    """Attention that answers zeros: without requests most backends leave their output as it was."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = kwargs["output"] if "output" in kwargs else args[6]
        return output.zero_()

    layers = config.compilation_config.static_forward_context.values()
    backends = [layer.impl for layer in layers if hasattr(layer, "impl")]
    for backend in backends:
        backend.forward = forward
    try:
        yield
    finally:
        for backend in backends:
            del backend.forward
