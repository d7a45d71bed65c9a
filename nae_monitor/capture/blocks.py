"""Finds the decoder blocks of a transformers causal language model."""

from __future__ import annotations

from typing import Any

import torch

from nae_monitor.errors import ConfigurationError, UnsupportedError


def inner_model(model: Any) -> Any:
    """The transformers model inside PEFT and ``torch.compile`` wrappers."""
    model = getattr(model, "_orig_mod", model)
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        model = model.get_base_model()
    return model


def decoder_block(model: Any, layer: int) -> torch.nn.Module:
    """The block whose output is ``hidden_states[layer]``.

    Args:
        model: a transformers causal language model; vision parts are passed over.
        layer: K, 1 to the number of blocks less one (the last hidden state is behind the final
            norm, so it is no block's output).

    Raises:
        UnsupportedError: no transformers decoder with a plain list of blocks.
        ConfigurationError: ``layer`` is out of range.
    """
    blocks = _blocks(model)
    if not 1 <= layer < len(blocks):
        raise ConfigurationError(
            f"layer {layer} is out of range for {type(model).__name__}: 1 to {len(blocks) - 1}"
        )
    return blocks[layer - 1]


def _blocks(model: Any) -> torch.nn.ModuleList:
    name = type(model).__name__
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "generate"):
        raise UnsupportedError(f"{name} is not a transformers model that generates")
    if config.is_encoder_decoder:
        raise UnsupportedError(f"{name} is an encoder-decoder model; only decoders can be watched")
    wanted = getattr(config.get_text_config(), "num_hidden_layers", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    for module in decoder.modules():  # outer lists come before the lists inside their items
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted:
            return module
    raise UnsupportedError(f"{name} has no list of {wanted} decoder blocks that can be watched")
