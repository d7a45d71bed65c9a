"""The activation reconstructor (AR): text to vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nae_monitor.decode.contract import ArCheckpoint
from nae_monitor.decode.tokens import ar_prompt, ends_with
from nae_monitor.decode.weights import decoder_config, load_trunk


class Reconstructor:
    """``layer`` blocks of the target without final norm, and a linear head on the last token.

    Args:
        checkpoint: the reconstructor.
        trunk: its decoder, final norm removed.
        batch_size: how many texts run at once. At 1 every text runs by itself and its vector
            does not depend on the batch in a single bit; above, it may in the last ones.
    """

    def __init__(self, checkpoint: ArCheckpoint, trunk: Any, *, batch_size: int = 1) -> None:
        self.contract = checkpoint.contract
        self._tokenizer = checkpoint.tokenizer
        self._trunk = trunk
        parameter = next(trunk.parameters())
        self._device = parameter.device
        self._head = checkpoint.head.to(parameter.device, torch.float32)
        self._batch_size = batch_size
        self._max_tokens = int(decoder_config(trunk.config).max_position_embeddings)

    def reconstruct(self, texts: Sequence[str]) -> torch.Tensor:
        """Predict the activation that each text describes; only directions were trained.

        Args:
            texts: explanations, without tags.

        Returns:
            [n, d] float32 on the CPU. A row is NaN where the prompt does not end with the pinned
            suffix, has no token at all, or is longer than the model's context.
        """
        prompts = [ar_prompt(self.contract, self._tokenizer, text) for text in texts]
        result = torch.full((len(prompts), self.contract.d_model), torch.nan)
        usable = [i for i, ids in enumerate(prompts) if self._is_usable(ids)]
        usable.sort(key=lambda i: len(prompts[i]))  # little padding, and a deterministic order
        for start in range(0, len(usable), self._batch_size):
            rows = usable[start : start + self._batch_size]
            result[rows] = self._run([prompts[i] for i in rows]).cpu()
        return result

    def _is_usable(self, ids: list[int]) -> bool:
        return 0 < len(ids) <= self._max_tokens and ends_with(ids, self.contract.suffix_ids)

    @torch.inference_mode()
    def _run(self, prompts: list[list[int]]) -> torch.Tensor:
        lengths = [len(ids) for ids in prompts]
        longest = max(lengths)
        ids = torch.tensor([p + [0] * (longest - len(p)) for p in prompts], device=self._device)
        last = torch.tensor(lengths, device=self._device) - 1
        mask = torch.arange(longest, device=self._device) <= last[:, None]
        output = self._trunk(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        states = output.last_hidden_state[torch.arange(len(prompts), device=self._device), last]
        result: torch.Tensor = states.float() @ self._head.T
        return result


def load_reconstructor(
    checkpoint: ArCheckpoint, *, batch_size: int, dtype: torch.dtype, device: torch.device
) -> Reconstructor:
    """Load the trunk; the other blocks, the final norm and the head of the base are not kept.

    Raises:
        CheckpointError: the weights cannot be loaded.
    """
    trunk = load_trunk(checkpoint.source, dtype=dtype, device=device)
    return Reconstructor(checkpoint, trunk, batch_size=batch_size)
