"""The two training stages of a pair, from collected examples to resumable states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from nae_monitor.train import ar, av, lora
from nae_monitor.train.batches import another_row, padded
from nae_monitor.train.dataset import Examples
from nae_monitor.train.fit import STATE, FitOptions, Report, fit
from nae_monitor.train.lora import LoraOptions

AR_CONTRAST = 0.1
HEAD_ROWS = 8192  # texts that the head's closed form is fitted on
SHORTENED_SHARE = 0.15  # of the reconstructor's texts, so that short decodes work


def unit_mean(vectors: torch.Tensor) -> torch.Tensor:
    """m, the mean [d] of the unit vectors, not re-normalised."""
    return normalize(vectors, dim=-1).mean(0)


def train_av(
    model: Any,
    tokenizer: Any,
    train: Examples,
    validation: Examples,
    directory: Path,
    options: LoraOptions,
    fit_options: FitOptions,
    *,
    injection_scale: float,
    reduced: bool,
    report: Report,
) -> Any:
    """Train the verbalizer's adapters; returns the wrapped model.

    Raises:
        ModelError: the tokenizer cannot serve a verbalizer.
        NaeMonitorError: as :func:`nae_monitor.train.fit.fit`.
    """
    model = lora.add_adapters(model, options, seed=fit_options.seed)
    device = next(model.parameters()).device
    prompt = av.av_prompt(tokenizer, injection_scale)
    examples = av.encode_targets(tokenizer, train.targets)
    held_out = av.encode_targets(tokenizer, validation.targets)
    shuffled = validation.vectors[torch.from_numpy(another_row(len(validation), seed=1))]

    def step(rows: np.ndarray, number: int) -> torch.Tensor:
        with lora.precision(model, device, reduced):
            losses, real = av.token_losses(
                model, prompt, train.vectors[rows].to(device), [examples.token_ids[i] for i in rows]
            )
            return av.weighted_loss(losses, real, [examples.weights[i] for i in rows])

    def evaluate() -> dict[str, float]:
        model.eval()
        with lora.precision(model, device, reduced):
            real, other = (
                av.validation_loss(model, prompt, v.to(device), held_out)
                for v in (validation.vectors, shuffled)
            )
        model.train()
        return {"validation_loss": real, "validation_loss_shuffled": other, "gap": other - real}

    model.train()
    fit(model, examples.lengths, step, evaluate, directory, options, fit_options, report)
    return model


def train_ar(
    model: Any,
    tokenizer: Any,
    train: Examples,
    validation: Examples,
    directory: Path,
    options: LoraOptions,
    fit_options: FitOptions,
    *,
    blocks: int,
    reduced: bool,
    report: Report,
    read: Sequence[tuple[int, str]] = (),
    read_validation: Sequence[tuple[int, str]] = (),
) -> ar.Trunk:
    """Train the reconstructor's adapters and head; returns the trunk.

    ``read`` holds (row of train, the verbalizer's text for it); where there are any, they are
    repeated until they are about as many as the target texts. ``read_validation`` holds the same
    of validation rows, for the fidelity of the round trip.

    Raises:
        NaeMonitorError: as :func:`nae_monitor.train.fit.fit`.
    """
    trunk = ar.Trunk(lora.add_adapters(model, options, seed=fit_options.seed), blocks)
    device = trunk.head.weight.device
    mean = unit_mean(train.vectors[train.content]).to(device)
    rows = _rows_to_read(tokenizer, train, read)
    if fit_options.start is None and not (directory / STATE).exists():
        drawn = np.random.default_rng(fit_options.seed).permutation(len(rows.texts))[:HEAD_ROWS]
        with lora.precision(trunk.body, device, reduced):
            chosen = [rows.texts[i] for i in drawn]
            ar.fit_head(trunk, tokenizer, chosen, train.vectors[rows.owners[drawn]])

    def step(batch: np.ndarray, number: int) -> torch.Tensor:
        rng = np.random.default_rng([fit_options.seed, number])  # a resumed run draws the same
        ids, mask = padded(rows.encoded_some_short(batch, rng), pad=0)
        with lora.precision(trunk.body, device, reduced):
            predicted = trunk(ids.to(device), mask.to(device))
        own = train.vectors[rows.owners[batch]].to(device)
        return ar.ar_loss(predicted, own, mean, contrast=AR_CONTRAST)

    def evaluate() -> dict[str, float]:
        trunk.eval()
        with lora.precision(trunk.body, device, reduced):
            found = _ar_fidelity(trunk, tokenizer, validation, read_validation, mean.cpu())
        trunk.train()
        return found

    trunk.train()
    lengths = [len(ids) for ids in rows.encoded]
    fit(trunk, lengths, step, evaluate, directory, options, fit_options, report)
    return trunk


@dataclass(frozen=True, eq=False, slots=True)
class _Rows:
    """Texts that the reconstructor learns from, and the vectors they are of."""

    tokenizer: Any
    texts: list[str]
    owners: np.ndarray  # [n] index of each text's vector
    encoded: list[list[int]]

    def encoded_some_short(self, batch: np.ndarray, rng: np.random.Generator) -> list[list[int]]:
        """Token ids of the texts at ``batch``, some of them cut short."""
        encoded = [self.encoded[i] for i in batch]
        short = rng.random(len(batch)) < SHORTENED_SHARE
        replacements = ar.encode_explanations(
            self.tokenizer, [ar.shortened(self.texts[i], rng) for i in batch[short]]
        )
        for place, replacement in zip(np.flatnonzero(short), replacements, strict=True):
            encoded[place] = replacement
        return encoded


def _rows_to_read(tokenizer: Any, train: Examples, read: Sequence[tuple[int, str]]) -> _Rows:
    repeated = list(read) * (len(train) // len(read) if read else 0)
    texts = [t.text for t in train.targets] + [text for _, text in repeated]
    owners = np.array([*range(len(train)), *(row for row, _ in repeated)])
    return _Rows(tokenizer, texts, owners, ar.encode_explanations(tokenizer, texts))


def _ar_fidelity(
    trunk: ar.Trunk,
    tokenizer: Any,
    validation: Examples,
    read: Sequence[tuple[int, str]],
    mean: torch.Tensor,
) -> dict[str, float]:
    """Fidelity of reconstructions of the targets, and of the verbalizer's own texts."""
    content = validation.select(validation.content.nonzero().flatten())
    predicted = ar.reconstruct(trunk, tokenizer, [t.text for t in content.targets])
    found = fidelity("gold", content.vectors, predicted, mean)
    if read:
        own = ar.reconstruct(trunk, tokenizer, [text for _, text in read])
        found |= fidelity("round_trip", validation.vectors[[row for row, _ in read]], own, mean)
    return found


def fidelity(
    name: str, vectors: torch.Tensor, predicted: torch.Tensor, mean: torch.Tensor
) -> dict[str, float]:
    """FVE and mean cosine of reconstructions [n, d] of the texts ``name``; ``mean`` is m [d]."""
    unit, guess = normalize(vectors, dim=-1), normalize(predicted, dim=-1)
    variance = (unit - mean).square().sum(-1).mean()
    fve = 1 - (unit - guess).square().sum(-1).mean() / variance
    return {f"fve_{name}": float(fve), f"cosine_{name}": float((unit * guess).sum(-1).mean())}
