"""Scores of rows against directions, with as few operations a step as it takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nae_monitor.host_copy import to_device
from nae_monitor.records import Phase
from nae_monitor.screen.direction_files import SCALED
from nae_monitor.screen.directions import Directions, scale_of, unit_rows


class Scorer:
    """As :meth:`Directions.scores`, for one device.

    Each phase's calibration is folded into a copy of the directions, so that a decode step, whose
    rows are all of one phase, is one product and no choice between scales. What the anomaly of a
    row is made from comes out of the same product.
    """

    def __init__(self, directions: Directions, device: torch.device) -> None:
        self.device = device
        there = directions.to(device)
        beside = there.weights[:0]
        if directions.anomaly is not None:
            beside = torch.from_numpy(directions.anomaly.columns).to(there.weights)
        self._folded = {
            phase: (
                torch.cat(
                    [there.weights / there.scales[phase].deviations[:, None], beside]
                ).T.contiguous(),
                torch.cat(
                    [
                        -there.scales[phase].means / there.scales[phase].deviations,
                        beside.new_zeros(len(beside)),
                    ]
                ),
            )
            for phase in SCALED
        }

    def __call__(self, rows: torch.Tensor, phases: Sequence[Phase]) -> torch.Tensor:
        """The score of every row along every direction, and products with the anomaly's columns
        where there is one: [n, m] or [n, m + r + 1].

        Args:
            rows: [n, d] on the scorer's device, any floating-point type, without a gradient.
            phases: [n].
        """
        unit = unit_rows(rows)
        if phases.count(Phase.COMPLETION) in (0, len(phases)):
            of = scale_of(phases[0]) if phases else Phase.PROMPT
            return self._scores(unit, of)
        prompt = [scale_of(phase) is Phase.PROMPT for phase in phases]
        at = to_device(torch.tensor(prompt, device="cpu"), self.device)[:, None]
        return torch.where(
            at, self._scores(unit, Phase.PROMPT), self._scores(unit, Phase.COMPLETION)
        )

    def _scores(self, unit: torch.Tensor, phase: Phase) -> torch.Tensor:
        weights, offset = self._folded[phase]
        return torch.addmm(offset, unit, weights)
