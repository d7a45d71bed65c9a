"""Several texts for each of many vectors: one greedy, the others sampled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nae_monitor.decode.engines.torch_engine import TorchEngine
from nae_monitor.decode.prompts import PromptBatch, Sampling, parse_explanation
from nae_monitor.errors import InputDataError
from nae_monitor.train import av
from nae_monitor.train.files import write_errors
from nae_monitor.train.reading import MAX_TOKENS, read_batch


@dataclass(frozen=True, slots=True)
class Sampled:
    """The texts of one row, the greedy one first; None where the closing tag never came."""

    row: int
    texts: tuple[str | None, ...]


def sample_rows(
    model: Any,
    tokenizer: Any,
    vectors: torch.Tensor,
    rows: Sequence[int],
    path: Path,
    *,
    injection_scale: float,
    samples: int,
    temperature: float,
    seed: Sequence[int],
) -> Iterator[tuple[int, int]]:
    """Write texts for ``rows`` to ``path``; yields (rows done, rows in all).

    A text depends on its row and ``seed``, not on the batch it is written in (in float32). A run
    that was killed goes on behind the last whole line.

    Args:
        model: the verbalizer with its adapters merged, in evaluation mode.
        tokenizer: with the verbalizer's chat template.
        vectors: [n, d], of all training rows.
        rows: indices into ``vectors``.
        path: JSON Lines of ``{"row": …, "texts": [greedy, sampled, …]}``.
        injection_scale: as in training.
        samples: texts beside the greedy one.
        temperature: of the samples.
        seed: numbers that the samples' seeds are made of, with row and sample.
    """
    prompt = av.av_prompt(tokenizer, injection_scale)
    size = read_batch(model)
    engine = TorchEngine(model, tokenizer, batch_size=size)
    fixed = engine.prompt_rows(prompt.token_ids)
    done = len(read_samples(path)) if path.exists() else 0
    for start in range(done, len(rows), size):
        part = list(rows[start : start + size])
        injected = av.inject(fixed.expand(len(part), -1, -1), vectors[part], prompt)
        texts = [[text] for text in _write(engine, injected, prompt, Sampling(MAX_TOKENS))]
        for number in range(samples):
            seeds = tuple(_seed([*seed, row, number]) for row in part)
            sampling = Sampling(MAX_TOKENS, temperature, seeds)
            for own, text in zip(texts, _write(engine, injected, prompt, sampling), strict=True):
                own.append(text)
        lines = (json.dumps({"row": r, "texts": t}) for r, t in zip(part, texts, strict=True))
        with write_errors(path), path.open("a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
        yield start + len(part), len(rows)


def read_samples(path: Path) -> list[Sampled]:
    """What :func:`sample_rows` wrote; a torn last line is cut off the file."""
    found: list[Sampled] = []
    kept = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            value = json.loads(line)
            found.append(Sampled(int(value["row"]), tuple(value["texts"])))
        except (ValueError, KeyError, TypeError):
            break
        kept += len(line)
    if kept < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(kept)
    return found


def check_rows(found: Sequence[Sampled], rows: Sequence[int], path: Path) -> None:
    """Refuse samples of other rows.

    Raises:
        InputDataError: the data was collected anew, or the options have changed.
    """
    if [s.row for s in found] != list(rows[: len(found)]):
        raise InputDataError(f"{path} is of other training rows; delete its folder to sample again")


def _seed(numbers: list[int]) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _write(
    engine: TorchEngine, embedded: torch.Tensor, prompt: av.AvPrompt, sampling: Sampling
) -> list[str | None]:
    written = engine.generate(PromptBatch(embedded.float(), prompt.marker), sampling)
    parsed = (parse_explanation(w.text) for w in written)
    return [text if closed else None for text, closed in parsed]
