"""Ends one sequence of a running ``generate`` and leaves its neighbours alone."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from nae_monitor.capture.generation import Generation
from nae_monitor.capture.listener import Stopping
from nae_monitor.health import Health

COMPONENT = "capture.stop"


class StopCriterion:
    """A stopping criterion of transformers for one watched ``generate`` call.

    A sequence that ends gets padding from then on, as after an end-of-sequence token; its rows
    are not captured any more, and the call returns when every sequence has ended. Whatever fails
    in here stops nothing, and is counted.
    """

    def __init__(
        self, generation: Generation, stopping: Stopping, health: Health, pad_token_id: int | None
    ) -> None:
        self._generation = generation
        self._stopping = stopping
        self._health = health
        if pad_token_id is not None:
            # transformers pads ended sequences only where a criterion has this attribute.
            self.eos_token_id = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Which sequences end: bool ``[S]`` for ids ``[S, T]``."""
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        if not self._health.is_open(COMPONENT):
            with self._health.guard(COMPONENT):
                for sequence in self._generation.stop(self._stopping, input_ids):
                    done[sequence] = True
        return done


def with_criterion(
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    criterion: StopCriterion,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a ``generate`` call with one stopping criterion more."""
    bound = signature.bind(*args, **kwargs)
    named = bound.arguments
    if "stopping_criteria" not in signature.parameters:
        named = named.setdefault("kwargs", {})
    named["stopping_criteria"] = [*(named.get("stopping_criteria") or ()), criterion]
    return bound.args, bound.kwargs
