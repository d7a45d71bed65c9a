"""The two halves of a pair as a run loads them: base model, adapters, collected rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nae_monitor.errors import InputDataError
from nae_monitor.models import Target, load_target, resolve_target
from nae_monitor.train import ar, av, lora
from nae_monitor.train.dataset import Examples, load_examples
from nae_monitor.train.machine import matmul_peak
from nae_monitor.train.processes import own_device, process_count
from nae_monitor.train.recipe import Recipe
from nae_monitor.train.target_checks import check_target

VALIDATION_ROWS = 256


def training_attention(device: str) -> str | None:
    """The attention that steps are fastest with on a device; None: the model's own."""
    # The fused kernel's backward pass took a fifth of a training step on short texts.
    return "eager" if device == "cpu" else None


@dataclass(frozen=True, slots=True)
class Data:
    """What both halves are trained on."""

    tokenizer: Any  # the target's
    train: Examples
    validation: Examples  # a fixed sample of the validation split's content rows
    injection_scale: float  # the norm that injected vectors are given

    @property
    def verbalizer_tokenizer(self) -> Any:
        """The tokenizer once it carries the verbalizer's chat template."""
        self.tokenizer.chat_template = av.AV_CHAT_TEMPLATE
        return self.tokenizer

    @property
    def prompt_tokens(self) -> int:
        """Length of the verbalizer's fixed prompt."""
        return len(av.av_prompt(self.verbalizer_tokenizer, self.injection_scale).token_ids)


@dataclass(frozen=True, slots=True)
class Halves:
    """Loads what a recipe names onto one device."""

    recipe: Recipe
    activations: Path
    device: str

    def target(self, dtype: torch.dtype) -> Target:
        """The target model, checked.

        Raises:
            ModelError: it cannot be used.
        """
        target = load_target(self.recipe.target, dtype=dtype, device=own_device(self.device))
        check_target(target, self.recipe.collect.layer)
        return target

    @property
    def reduced(self) -> bool:
        """Whether products run in bfloat16."""
        return lora.has_fast_bfloat16(torch.device(self.device))

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights, and of their products."""
        return torch.bfloat16 if self.reduced else torch.float32

    def peak(self) -> float:
        """FLOP/s of a large matrix product here, measured once for about a second."""
        return matmul_peak(own_device(self.device), self.dtype)

    def base(self) -> Any:
        """A model for adapters."""
        model = self.target(self.dtype).model
        if (kind := training_attention(self.device)) is not None:
            model.set_attn_implementation(kind)
        return model

    def data(self) -> Data:
        """The collected rows.

        Raises:
            InputDataError: no shards, damaged ones, or too few rows for one batch.
        """
        from transformers import AutoConfig, AutoTokenizer

        place = resolve_target(self.recipe.target)
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
        config = AutoConfig.from_pretrained(place, local_files_only=True).get_text_config()
        train, validation = (
            load_examples(self.activations, tokenizer, split, d_model=config.hidden_size)
            for split in ("train", "validation")
        )
        for split, examples in (("train", train), ("validation", validation)):
            if not examples.content.any():
                raise InputDataError(
                    f"{self.activations} holds no content positions of the split {split!r}; "
                    "collect more documents"
                )
        self._refuse_too_few(len(train))
        content = validation.content.nonzero().flatten()
        order = torch.randperm(
            len(content), generator=torch.Generator().manual_seed(self.recipe.seed)
        )
        return Data(
            tokenizer,
            train,
            validation.select(content[order[:VALIDATION_ROWS]]),
            float(train.vectors.norm(dim=-1).quantile(self.recipe.scale_quantile)),
        )

    def _refuse_too_few(self, rows: int) -> None:
        halves = (self.recipe.av, self.recipe.ar)
        batch = process_count() * max(half.lora.batch_size for half in halves)
        if rows < batch:
            raise InputDataError(
                f"{self.activations} holds {rows} training rows, less than one batch of {batch}; "
                "collect more documents, or choose a smaller batch_size"
            )

    def verbalizer(self, state: Path) -> Any:
        """The wrapped verbalizer of a saved state."""
        model = lora.add_adapters(self.base(), self.recipe.av.lora, seed=self.recipe.seed)
        lora.load_state(state, model, None)
        return model

    def reconstructor(self, state: Path) -> ar.Trunk:
        """The reconstructor of a saved state."""
        body = lora.add_adapters(self.base(), self.recipe.ar.lora, seed=self.recipe.seed)
        trunk = ar.Trunk(body, self.recipe.collect.layer)
        lora.load_state(state, trunk, None)
        return trunk
