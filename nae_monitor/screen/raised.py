"""What a rule's hit asked for: a larger share of the tokens that follow."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nae_monitor.records import Request, RowBatch

MAX_RAISED = 10_000  # wishes open at once; the oldest is let go first

Scope = Literal["request", "session", "tenant"]


@dataclass(slots=True)
class _Wish:
    rate: float  # share of tokens
    left_tokens: int


class RaisedSampling:
    """Open wishes by scope. Not thread-safe."""

    def __init__(self) -> None:
        self._wishes: OrderedDict[tuple[Scope, str], _Wish] = OrderedDict()

    def add(self, scope: Scope, value: str, rate: float, tokens: int) -> None:
        """Wish for ``rate`` of the next ``tokens`` of a scope; the larger of two wishes holds."""
        wish = self._wishes.setdefault((scope, value), _Wish(rate, tokens))
        wish.rate, wish.left_tokens = max(wish.rate, rate), max(wish.left_tokens, tokens)
        self._wishes.move_to_end((scope, value))
        while len(self._wishes) > MAX_RAISED:
            self._wishes.popitem(last=False)

    def __bool__(self) -> bool:
        """Whether any wish is open."""
        return bool(self._wishes)

    def rates(self, batch: RowBatch) -> NDArray[np.float64] | None:
        """The share wanted of each row, ``[n]``; None where nothing is. Uses the wishes up."""
        if not self:
            return None
        found: NDArray[np.float64] | None = None
        owner = np.asarray(batch.request_index, dtype=np.int64)
        for index in np.unique(owner).tolist():
            for key in _scopes(batch.requests[index]):
                wish = self._wishes.get(key)
                if wish is None:
                    continue
                rows = np.flatnonzero(owner == index)[: wish.left_tokens]
                found = np.zeros(len(owner)) if found is None else found
                found[rows] = np.maximum(found[rows], wish.rate)
                wish.left_tokens -= len(rows)
                if not wish.left_tokens:
                    del self._wishes[key]
        return found


def _scopes(request: Request) -> list[tuple[Scope, str]]:
    scopes: list[tuple[Scope, str]] = [("request", request.request_id)]
    if request.session_id:
        scopes.append(("session", request.session_id))
    if request.tenant:
        scopes.append(("tenant", request.tenant))
    return scopes
