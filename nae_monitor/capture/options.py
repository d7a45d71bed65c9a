"""Reads the options of one ``generate`` call, and tells what cannot be watched row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

_REFUSED: Mapping[str, str] = {
    "inputs_embeds": "its prompt has no token ids",
    "custom_generate": "a custom decoding loop may move rows between sequences",
    "assistant_model": "assisted generation drops rows that were computed",
    "prompt_lookup_num_tokens": "assisted generation drops rows that were computed",
    "assistant_early_exit": "assisted generation drops rows that were computed",
    "use_mtp": "assisted generation drops rows that were computed",
    "constraints": "constrained beam search reorders rows between steps",
    "force_words_ids": "constrained beam search reorders rows between steps",
    "dola_layers": "DoLa runs a decoding loop of its own",
    "token_healing": "token healing rewrites the prompt",
}


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What of a ``generate`` call the tap needs to know."""

    refusal: str | None  # why the call cannot be watched; None: it can
    sequences_per_prompt: int
    eos_token_ids: frozenset[int]
    pad_token_id: int | None
    bos_token_id: int
    other_criteria: bool  # a sequence may end without an end-of-sequence token


def read_options(model: Any, arguments: Mapping[str, Any]) -> GenerateOptions:
    """Options as transformers resolves them: keyword, then given config, then the model's own.

    Args:
        model: the transformers model.
        arguments: every argument of the call by name, keywords merged in.
    """
    given, own = arguments.get("generation_config"), model.generation_config

    def option(name: str) -> Any:
        if name in arguments:
            return arguments[name]
        value = getattr(given, name, None)
        return getattr(own, name, None) if value is None else value

    eos, pad = _token_ids(option("eos_token_id")), _token_ids(option("pad_token_id"))
    return GenerateOptions(
        refusal=_refusal(option, model),
        sequences_per_prompt=option("num_return_sequences") or 1,
        eos_token_ids=frozenset(eos),
        pad_token_id=next(iter(pad or eos), None),
        bos_token_id=(_token_ids(option("bos_token_id")) or [0])[0],
        other_criteria=bool(option("stopping_criteria") or option("stop_strings")),
    )


def _token_ids(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(token) for token in torch.as_tensor(value).reshape(-1).tolist()]


def _refusal(option: Any, model: Any) -> str | None:
    for name in ("num_beams", "num_beam_groups"):
        if (option(name) or 1) > 1:
            return _refuse(f"{name}={option(name)}", "beam search reorders rows between steps")
    for name, why in _REFUSED.items():
        value = option(name)
        if value is not None and value is not False:
            return _refuse(name, why)
    if (option("penalty_alpha") or 0) > 0 and not option("do_sample"):
        return _refuse("penalty_alpha", "contrastive search runs rows that are thrown away")
    if option("guidance_scale") not in (None, 1, 1.0):
        return _refuse("guidance_scale", "classifier-free guidance runs passes of no request")
    if option("cache_implementation") == "paged":
        return _refuse("cache_implementation='paged'", "continuous batching mixes requests")
    if _compiles_in_one_graph(option, model):
        return _refuse("compile_config.fullgraph", "one graph has no place for a hook")
    return None


def _refuse(what: str, why: str) -> str:
    return f"generate({what}) cannot be monitored: {why}; leave it out, or detach the monitor"


def _compiles_in_one_graph(option: Any, model: Any) -> bool:
    config = option("compile_config")
    if config is None or not config.fullgraph or option("disable_compile"):
        return False
    return model.device.type != "cpu" or bool(getattr(config, "_compile_all_devices", False))
