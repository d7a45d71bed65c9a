"""Reads the prompt of a ``generate`` call: token ids, padding, and what a cache already holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nae_monitor.capture.context import Turn
from nae_monitor.capture.options import GenerateOptions

UNKNOWN_TOKEN = -1


@dataclass(frozen=True, eq=False, slots=True)
class Prompt:
    """The columns a generation starts from, one row a sequence (copies side by side)."""

    token_ids: NDArray[np.int64]  # [S, C], UNKNOWN_TOKEN for cached tokens never seen
    real: NDArray[np.bool_]  # [S, C]
    cached_columns: int  # the first columns, not processed again
    input_columns: int  # columns of the ids the caller passed; completions follow them
    prompts: int  # rows before sequences_per_prompt
    continues: bool  # carries on with the turn before


def read_prompt(
    arguments: Mapping[str, Any], options: GenerateOptions, last: Turn | None
) -> Prompt:
    """Work out the columns as transformers does.

    Raises:
        ValueError: mask and cache do not fit the ids; the call cannot be mapped to rows.
    """
    ids = _input_ids(arguments, options)
    mask = _mask(arguments, ids, options)
    prompts = ids.shape[0]
    ids = ids.repeat(options.sequences_per_prompt, axis=0)
    mask = mask.repeat(options.sequences_per_prompt, axis=0)
    cached = _cached_columns(arguments.get("past_key_values"))
    follows = (
        last is not None
        and 0 < cached <= last.token_ids.shape[1]
        and len(last.requests) == len(ids)
    )
    columns = ids.shape[1]
    if mask.shape[1] != columns:  # only the new ids were passed, with the mask of everything
        if mask.shape[1] != cached + columns:
            raise ValueError("attention mask does not cover cache and input ids")
        before = last.token_ids[:, :cached] if follows and last else _unknown(len(ids), cached)
        ids = np.concatenate([before, ids], axis=1)
    elif cached >= columns:
        raise ValueError("the cache is longer than the input ids")
    elif follows and last:
        follows = np.array_equal(ids[:, :cached], last.token_ids[:, :cached])
    return Prompt(ids, mask, cached, columns, prompts, follows)


def _input_ids(arguments: Mapping[str, Any], options: GenerateOptions) -> NDArray[np.int64]:
    ids = arguments.get("inputs")
    if ids is None:
        ids = arguments.get("input_ids")
    if ids is None:  # transformers starts such a call from the beginning-of-sequence token
        return np.array([[options.bos_token_id]], dtype=np.int64)
    return to_numpy(ids)


def _mask(
    arguments: Mapping[str, Any], ids: NDArray[np.int64], options: GenerateOptions
) -> NDArray[np.bool_]:
    mask = arguments.get("attention_mask")
    if mask is not None:
        return np.asarray(to_numpy(mask) != 0)
    pad = options.pad_token_id
    if pad is None or pad in options.eos_token_ids:  # padding cannot be told from an ending
        return np.ones(ids.shape, dtype=np.bool_)
    return np.asarray(ids != pad)


def _cached_columns(cache: Any) -> int:
    return 0 if cache is None else int(cache.get_seq_length())


def _unknown(sequences: int, columns: int) -> NDArray[np.int64]:
    return np.full((sequences, columns), UNKNOWN_TOKEN, dtype=np.int64)


def to_numpy(tensor: torch.Tensor) -> NDArray[np.int64]:
    """An integer tensor as int64 on the CPU (waits for the device)."""
    return np.asarray(tensor.detach().to("cpu", torch.int64).numpy())
