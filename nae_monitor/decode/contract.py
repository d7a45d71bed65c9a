"""What an NLA checkpoint promises: the frozen content of ``nla_meta.yaml`` after every check.

Source: the sidecar schema of the released NLA pairs (NLA paper, Transformer Circuits, 2026) and
our adapter form of it.

Layers are counted in two ways. A sidecar counts blocks, as the public code of the released pairs
does (kitft/natural_language_autoencoders, ``nla/datagen/extractors.py`` and ``nla/models.py``):
its layer index K, from 0, names the block whose *output* was captured, and the reconstructor keeps
blocks 0..K. This package counts hidden states, as capture does: ``layer = K + 1`` is the index into
Hugging Face's ``hidden_states`` and the number of blocks of the reconstructor. ``sidecar.py`` adds
the one; ``layer_index`` takes it off again, for messages and for sidecars that are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nae_monitor.decode.lora import LoraConfig

SIDECAR = "nla_meta.yaml"
MIN_BANK_VECTORS = 256


@dataclass(frozen=True, slots=True)
class AvContract:
    """The activation verbalizer's sidecar."""

    file: str  # the sidecar, for messages
    nla_id: str
    d_model: int
    layer: int | None  # it reads hidden_states[layer]; None where an official sidecar is silent
    injection_scale: float  # Euclidean norm of the injected vector
    injection_char: str
    injection_token_id: int
    left_neighbor_id: int
    right_neighbor_id: int
    prompt_template: str  # holds {injection_char} once
    base_model: str | None  # adapter form only

    @property
    def layer_index(self) -> int | None:
        """K, the captured block from 0, as sidecars say it."""
        return None if self.layer is None else self.layer - 1


@dataclass(frozen=True, slots=True)
class ArContract:
    """The activation reconstructor's sidecar."""

    file: str
    nla_id: str
    d_model: int
    layer: int  # it predicts hidden_states[layer], with as many blocks
    mse_scale: float  # norm both vectors are scaled to in the training loss
    suffix_ids: tuple[int, ...]  # every prompt ends with these tokens; none: with the explanation
    prompt_template: str  # holds {explanation} once
    base_model: str | None

    @property
    def layer_index(self) -> int:
        """K, the captured block from 0, as sidecars say it."""
        return self.layer - 1


@dataclass(frozen=True, eq=False, slots=True)
class WeightSource:
    """Where a role's weights lie; nothing is loaded yet."""

    directory: Path  # config.json and safetensors of the full model
    config: Any  # transformers configuration of that directory
    embedding_scale: float  # factor the model applies to token embeddings (Gemma: sqrt(d))
    adapter: Path | None  # adapter_model.safetensors, adapter form only
    lora: LoraConfig | None


@dataclass(frozen=True, eq=False, slots=True)
class FidelityReference:
    """Statistics of the unit-norm activations the pair was trained on."""

    mean: torch.Tensor  # [d] float32; shorter than 1, never renormalised
    variance: float  # mean squared distance of the unit vectors from their mean
    bank: torch.Tensor | None  # [n, d] float32, unit norm, n >= 256


@dataclass(frozen=True, eq=False, slots=True)
class AvCheckpoint:
    """A verbalizer that passed every check, with its prompt already in token ids."""

    contract: AvContract
    source: WeightSource
    tokenizer: Any
    prompt_ids: tuple[int, ...]
    marker_index: int  # position of the marker in prompt_ids, from 0


@dataclass(frozen=True, eq=False, slots=True)
class ArCheckpoint:
    """A reconstructor that passed every check."""

    contract: ArContract
    source: WeightSource
    tokenizer: Any
    head: torch.Tensor  # [d, d] float32
    reference: FidelityReference | None  # None: FVE and rank are unknown
