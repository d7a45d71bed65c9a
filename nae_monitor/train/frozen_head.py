"""Cross-entropy through a frozen language-model head, without keeping its logits.

The gradient of a cross-entropy with respect to the states is known as soon as the logits are, and
a frozen head asks for no gradient of its own. So the logits of a few rows at a time are turned
into gradients while they are in the processor's cache and are then forgotten (the idea of fused
linear cross-entropy kernels, e.g. Liger, Hsu et al. 2024).
"""

from __future__ import annotations

from typing import Any

import torch

CHUNK_ROWS = 96


class _FrozenHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, target_ids: torch.Tensor
    ) -> torch.Tensor:
        losses = torch.empty(len(states), device=states.device)
        gradient = torch.empty_like(states, dtype=torch.float32)
        for start in range(0, len(states), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            logits = (states[part].to(weight.dtype) @ weight.T).float()
            own = target_ids[part, None]
            total = logits.logsumexp(-1, keepdim=True)
            losses[part] = (total - logits.gather(-1, own)).squeeze(-1)
            if ctx.needs_input_grad[0]:
                shares = logits.sub_(total).exp_()
                shares.scatter_add_(-1, own, shares.new_full(own.shape, -1.0))
                gradient[part] = (shares.to(weight.dtype) @ weight).float()
        ctx.save_for_backward(gradient)
        ctx.dtype = states.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0][:, None]).to(ctx.dtype), None, None


def frozen_head_losses(
    states: torch.Tensor, weight: torch.Tensor, target_ids: torch.Tensor
) -> torch.Tensor:
    """Cross-entropies [n] float32 of ``target_ids`` [n] under ``states @ weight.T``.

    Args:
        states: [n, d], what the head reads.
        weight: [v, d], without gradient; products run in its precision.
        target_ids: the token that should follow each state.
    """
    return _FrozenHeadLoss.apply(states, weight, target_ids)  # type: ignore[no-any-return,no-untyped-call]
