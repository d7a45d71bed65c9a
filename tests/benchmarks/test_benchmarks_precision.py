"""The benchmark of smaller weights: what it counts, and that it ends in time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decode_precision import FULL, INT8, decoded, precision_claims

from nae_monitor.decode.prompts import Generation, PromptBatch, Sampling
from nae_monitor.train.intervals import Clusters

PROMPTS = PromptBatch(torch.zeros(3, 2, 4), 1)


class Writer:
    """Writes the same text for every prompt."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.rounds = 0

    def generate(self, prompts: PromptBatch, _: Sampling) -> list[Generation]:
        self.rounds += 1
        return [Generation(f"<explanation>{self.text}</explanation>", 5)] * len(prompts)


@pytest.mark.parametrize(("limit_s", "rounds"), [(1e9, 4), (0.0, 1)])
def test_every_precision_has_as_many_rounds_and_none_begins_after_the_limit(
    limit_s: float, rounds: int
) -> None:
    made = {FULL: Writer("a"), INT8: Writer("b")}
    rates, texts = decoded(made, PROMPTS, 4, limit_s, lambda *_: None)  # type: ignore[arg-type]
    assert {len(found) for found in rates.values()} == {rounds}
    assert [writer.rounds for writer in made.values()] == [rounds] * 2
    assert texts == {FULL: ["a"] * 3, INT8: ["b"] * 3}


@pytest.mark.parametrize(
    ("faster", "lost", "holds"), [(1.5, 0.01, [True, True]), (1.0, 0.03, [False, False])]
)
def test_int8_holds_only_where_it_is_faster_and_loses_little(
    faster: float, lost: float, holds: list[bool]
) -> None:
    whole, rate = np.full(6, 0.5), np.full(3, 10.0)
    claims = precision_claims(
        {FULL: rate, INT8: rate * faster},
        {FULL: np.ones(6), INT8: np.array([1.0, 1, 1, 0, 0, 0])},
        {FULL: whole, INT8: whole - lost},
        Clusters.by_document(["m", "m", "n", "n", "o", "o"], 0),
    )
    found = {claim.name: claim for claim in claims}
    assert found["int8: identical texts, share"].value == 0.5
    assert [
        found[f"int8: {name}"].holds for name in (f"speed over {FULL}", "FVE lost, mean")
    ] == holds
