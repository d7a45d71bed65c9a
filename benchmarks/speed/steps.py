"""One training step of each half as the trainer takes it, beside the plain way of doing the same.

Plain is what peft and transformers do without further thought: the model's default attention, and
torch's cross-entropy on the logits of every position. Both take the same examples through the same
adapters, and their losses agree (a test says so).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from nae_monitor.errors import InputDataError
from nae_monitor.models import Target, load_target
from nae_monitor.train import ar, av, lora
from nae_monitor.train.batches import padded
from nae_monitor.train.halves import training_attention
from nae_monitor.train.lora import LoraOptions
from nae_monitor.train.stages import AR_CONTRAST, unit_mean

PLAIN_ATTENTION = "sdpa"
IGNORED = -100  # the label that transformers' loss leaves out
INJECTION_SCALE = 248.0  # about what SmolLM2's layer 20 needs; speed does not depend on it

Half = Literal["AV", "AR"]
Step = Callable[[np.ndarray, int], torch.Tensor]  # rows of the batch, number of the step -> loss


@dataclass(frozen=True, slots=True)
class Work:
    """What is timed: made-up examples, all of one length, of one target."""

    target: str
    device: str
    tokens: int  # of an example, prompt included
    layer: int  # blocks of the reconstructor
    lora: LoraOptions
    seed: int = 0

    @property
    def examples(self) -> int:
        """Enough that batches differ."""
        return 4 * self.lora.batch_size


@dataclass(frozen=True, eq=False, slots=True)
class Variant:
    """One way of taking a step. ``prepare`` must run before each window of steps."""

    half: Half
    way: Literal["trainer", "plain"]
    dtype: torch.dtype  # that the products run in
    model: nn.Module
    prepare: Callable[[], None]
    step: Step

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.half}, {str(self.dtype).removeprefix('torch.')}, {self.way}"


def variants(half: Half, work: Work, dtype: torch.dtype) -> tuple[Variant, Variant]:
    """The trainer's step and the plain one, over one model.

    Raises:
        ModelError: the target cannot be loaded or serve as a pair's base.
        InputDataError: examples of ``work.tokens`` have no room behind the prompt.
    """
    target = load_target(work.target, dtype=dtype, device=work.device)
    own = training_attention(work.device) or PLAIN_ATTENTION
    model = lora.add_adapters(target.model, work.lora, seed=work.seed)
    build = _av_steps if half == "AV" else _ar_steps
    trained, fast, plain = build(target, model, work, dtype)
    trained.train()

    def attention(kind: str) -> Callable[[], None]:
        return lambda: model.get_base_model().set_attn_implementation(kind)

    return (
        Variant(half, "trainer", dtype, trained, attention(own), fast),
        Variant(half, "plain", dtype, trained, attention(PLAIN_ATTENTION), plain),
    )


def _av_steps(
    target: Target, model: Any, work: Work, dtype: torch.dtype
) -> tuple[nn.Module, Step, Step]:
    target.tokenizer.chat_template = av.AV_CHAT_TEMPLATE
    prompt = av.av_prompt(target.tokenizer, INJECTION_SCALE)
    vectors = _vectors(target, work)
    explanations = _token_ids(target, work, work.tokens - len(prompt.token_ids))
    weights = [[1.0] * explanations.shape[1]] * work.lora.batch_size
    device, reduced = torch.device(work.device), dtype == torch.bfloat16

    def fast(rows: np.ndarray, number: int) -> torch.Tensor:
        with lora.precision(model, device, reduced):
            losses, real = av.token_losses(
                model, prompt, vectors[rows], explanations[rows].tolist()
            )
            return av.weighted_loss(losses, real, weights)

    def plain(rows: np.ndarray, number: int) -> torch.Tensor:
        own = explanations[rows].to(device)
        fixed = torch.tensor(prompt.token_ids, device=device).expand(len(own), -1)
        embeddings = model.get_input_embeddings()(torch.cat([fixed, own], dim=1))
        labels = torch.cat([torch.full_like(fixed, IGNORED), own], dim=1)
        with lora.precision(model, device, reduced):
            loss: torch.Tensor = model(
                inputs_embeds=av.inject(embeddings, vectors[rows], prompt),
                labels=labels,
                use_cache=False,
            ).loss
        return loss

    return model, fast, plain


def _ar_steps(
    target: Target, model: Any, work: Work, dtype: torch.dtype
) -> tuple[nn.Module, Step, Step]:
    trunk = ar.Trunk(model, work.layer)
    vectors = _vectors(target, work)
    mean = unit_mean(vectors)
    explanations = _token_ids(target, work, work.tokens)
    device, reduced = torch.device(work.device), dtype == torch.bfloat16

    def step(rows: np.ndarray, number: int) -> torch.Tensor:
        ids, mask = padded(explanations[rows].tolist(), pad=0)
        with lora.precision(trunk.body, device, reduced):
            predicted = trunk(ids.to(device), mask.to(device))
        return ar.ar_loss(predicted, vectors[rows], mean, contrast=AR_CONTRAST)

    return trunk, step, step  # the reconstructor's ways differ in the attention alone


def _vectors(target: Target, work: Work) -> torch.Tensor:
    """Random vectors [examples, d] in float32."""
    generator = torch.Generator().manual_seed(work.seed)
    vectors = torch.randn(work.examples, target.d_model, generator=generator)
    return normalize(vectors, dim=-1).to(work.device)


def _token_ids(target: Target, work: Work, width: int) -> torch.Tensor:
    """Random ids [examples, width] of the target's vocabulary."""
    if width < 1:
        raise InputDataError(f"examples of {work.tokens} tokens have no room behind the prompt")
    generator = torch.Generator().manual_seed(work.seed + 1)
    vocabulary = target.model.config.get_text_config().vocab_size
    return torch.randint(vocabulary, (work.examples, width), generator=generator)


def example_flop(variant: Variant, work: Work) -> float:
    """Floating-point operations of the matrix products of one example, forward and backward.

    Counted, not estimated, in the trainer's step: what both ways are measured against, so that
    products which the plain way does in addition do not count in its favour.
    """
    variant.prepare()
    with FlopCounterMode(display=False) as counter:
        variant.step(np.arange(work.lora.batch_size), 0).backward()  # type: ignore[no-untyped-call]
    variant.model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops()) / work.lora.batch_size
