"""The verbalizer's own texts for training rows, which the reconstructor is trained on, too.

A reconstructor that has only seen perfect explanations trusts every word of a wrong one. Trained
on what the verbalizer really writes, it learns how far to trust it (the "keep the AR in step"
part of the NLA recipe).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nae_monitor.decode.engines.torch_engine import TorchEngine
from nae_monitor.decode.prompts import PromptBatch, Sampling, parse_explanation
from nae_monitor.errors import InputDataError
from nae_monitor.train import av
from nae_monitor.train.dataset import Examples
from nae_monitor.train.files import write_errors

CPU_BATCH, GPU_BATCH = 128, 512  # texts written at once
MAX_TOKENS = 64


def read_rows(
    model: Any,
    tokenizer: Any,
    train: Examples,
    path: Path,
    *,
    injection_scale: float,
    rows: int,
    seed: int,
) -> Iterator[tuple[int, int]]:
    """Verbalise ``rows`` rows greedily into ``path``; yields (rows done, rows in all).

    A run that was killed goes on behind the last whole line.

    Args:
        model: the verbalizer with its adapters merged, in evaluation mode.
        tokenizer: with the verbalizer's chat template.
        train: the training rows, or the validation rows.
        path: JSON Lines of ``{"row": index into train, "text": explanation}``.
        injection_scale: as in training.
        rows: how many.
        seed: which.
    """
    prompt = av.av_prompt(tokenizer, injection_scale)
    size = read_batch(model)
    engine = TorchEngine(model, tokenizer, batch_size=size)
    fixed = engine.prompt_rows(prompt.token_ids)
    order = np.random.default_rng([seed, 1]).permutation(len(train))[:rows].tolist()
    done = len(read_texts(path, len(train))) if path.exists() else 0
    while done < len(order):
        part = order[done : done + size]
        embedded = av.inject(fixed.expand(len(part), -1, -1), train.vectors[part], prompt)
        prompts = PromptBatch(embedded.float(), prompt.marker)
        written = engine.generate(prompts, Sampling(MAX_TOKENS))
        lines = [
            json.dumps({"row": row, "text": parse_explanation(w.text)[0]})
            for row, w in zip(part, written, strict=True)
        ]
        with write_errors(path), path.open("a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
        done += len(part)
        yield done, len(order)


def read_batch(model: Any) -> int:
    """How many texts are written at once."""
    return CPU_BATCH if model.get_input_embeddings().weight.device.type == "cpu" else GPU_BATCH


def read_texts(path: Path, train_rows: int) -> list[tuple[int, str]]:
    """What :func:`read_rows` wrote: (row, text); a torn last line is cut off the file.

    Raises:
        InputDataError: rows that the training data does not have: it was collected anew.
    """
    found: list[tuple[int, str]] = []
    kept = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            value = json.loads(line)
            found.append((int(value["row"]), str(value["text"])))
        except (ValueError, KeyError, TypeError):
            break
        kept += len(line)
    if kept < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(kept)
    if any(row >= train_rows for row, _ in found):
        raise InputDataError(f"{path} is of other training rows; delete it to read again")
    return found
