"""What is read off a batch and the screen's choice of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from nae_monitor.records import Activation, Choice, RowBatch
from nae_monitor.screen import Offers


def places_of(offers: Offers) -> list[int]:
    """The rows that were bought, and those that may wait."""
    return [choice.row for choice in (*offers.bought, *(one for one, _ in offers.waiting))]


def per_request(batch: RowBatch, indices: Sequence[int]) -> dict[str, int]:
    """How many of ``indices`` into the batch's requests are each request's."""
    if len(indices) == 1:
        return {batch.requests[indices[0]].request_id: 1}
    amounts: dict[str, int] = {}
    for index, amount in Counter(indices).items():
        request_id = batch.requests[index].request_id
        amounts[request_id] = amounts.get(request_id, 0) + amount
    return amounts


def activation_of(
    batch: RowBatch, choice: Choice, vector: torch.Tensor, captured_unix_ns: int
) -> Activation:
    """A chosen row with its ``vector`` [d]; the text of its token is not known yet."""
    row = choice.row
    return Activation(
        request=batch.requests[batch.request_index[row]],
        position=batch.positions[row],
        token_id=batch.token_ids[row],
        token="",
        phase=batch.phases[row],
        layer=batch.layer,
        vector=vector,
        reason=choice.reason,
        scores=choice.scores,
        captured_unix_ns=captured_unix_ns,
    )
