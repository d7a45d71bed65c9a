"""Scores pooled over the last tokens of a request: what a row alone shows is noisy.

A pooled score at a position is the moving average (``ema``) or the largest (``max``) of the scores
at that position and the ones before it; it begins anew where positions do not follow one another.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nae_monitor.records import RowBatch

PoolKind = Literal["ema", "max"]
MAX_TOKENS = 64
STATE_BYTES = 64 * 1024 * 1024  # of scores remembered; the request not seen longest goes first
NEGLIGIBLE = 1e-6  # weight of a score that an average no longer shows

Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pool:
    """How scores are pooled.

    ``ema``: y = y' + (x - y') * 2 / (tokens + 1), from y' = 0, which is what ordinary rows score.
    ``max``: the largest of the last ``tokens``.
    """

    kind: PoolKind
    tokens: int

    def __post_init__(self) -> None:
        if self.kind not in get_args(PoolKind) or not 2 <= self.tokens <= MAX_TOKENS:
            raise ValueError(f"a pool is ema or max of 2 to {MAX_TOKENS} tokens")

    @classmethod
    def parse(cls, text: str) -> Pool | None:
        """``ema:8``, ``max:4``, or ``none``; ValueError for anything else."""
        if text == "none":
            return None
        kind, _, tokens = text.partition(":")
        if kind not in ("ema", "max") or not tokens.isdecimal():
            raise ValueError("a pool is none, ema:TOKENS or max:TOKENS")
        return cls("ema" if kind == "ema" else "max", int(tokens))

    def __str__(self) -> str:
        return f"{self.kind}:{self.tokens}"

    @property
    def depth(self) -> int:
        """Rows of state that :meth:`run` needs of what came before."""
        return 1 if self.kind == "ema" else self.tokens - 1

    def start(self, width: int) -> Scores:
        """The state [depth, width] before a first row."""
        empty = 0.0 if self.kind == "ema" else -np.inf
        return np.full((self.depth, width), empty, dtype=np.float32)

    def run(self, scores: Scores, state: Scores) -> tuple[Scores, Scores]:
        """Pool rows that follow one another.

        Args:
            scores: [n, m], n at least 1; a row that is not finite is passed on and left out.
            state: [depth, m].

        Returns:
            The pooled scores [n, m], and the state after them.
        """
        finite = np.isfinite(scores).all(axis=1, keepdims=True)
        known = np.where(finite, scores, 0.0 if self.kind == "ema" else -np.inf)
        pooled, after = self._ema(known, state) if self.kind == "ema" else self._max(known, state)
        return np.where(finite, pooled, np.nan), after

    def step(self, scores: Scores, states: Scores) -> tuple[Scores, Scores]:
        """As :meth:`run` for one row [n, m] of each of n requests; states [n, depth, m]."""
        finite = np.isfinite(scores).all(axis=1, keepdims=True)
        if self.kind == "ema":
            gain = np.float32(2 / (self.tokens + 1))
            before = states[:, 0]
            pooled = before + gain * (np.where(finite, scores, 0.0) - before)
            return np.where(finite, pooled, np.nan), pooled[:, None]
        known = np.where(finite, scores, np.float32(-np.inf))
        window = np.concatenate([states, known[:, None]], axis=1)
        return np.where(finite, window.max(axis=1), np.nan), window[:, 1:]

    def _ema(self, scores: Scores, state: Scores) -> tuple[Scores, Scores]:
        """A scan in log2(n) steps, as weights only shrink: each adds twice as long a past."""
        gain = np.float32(2 / (self.tokens + 1))
        pooled = gain * scores
        pooled[0] += (1 - gain) * state[0]
        reach, weight = 1, 1 - gain
        while reach < len(pooled) and weight > NEGLIGIBLE:
            pooled[reach:] = pooled[reach:] + weight * pooled[:-reach]
            reach, weight = 2 * reach, weight * weight
        return pooled, pooled[-1:].copy()

    def _max(self, scores: Scores, state: Scores) -> tuple[Scores, Scores]:
        every = np.concatenate([state, scores])
        pooled, reach = every.copy(), 1
        while reach < self.tokens:
            step = min(reach, self.tokens - reach)
            pooled[step:] = np.maximum(pooled[step:], pooled[:-step].copy())
            reach += step
        return pooled[self.depth :], every[len(every) - self.depth :].copy()


class ScorePool:
    """The pools of the requests under way; bounded, thread-safe."""

    def __init__(self, pool: Pool, width: int) -> None:
        self._pool = pool
        self._width = width
        state_bytes = 4 * pool.depth * width
        self._slots = max(1, STATE_BYTES // state_bytes)
        self.renew()

    def renew(self) -> None:
        """Know nothing, with a lock of its own: for a forked child."""
        self._lock = threading.Lock()
        # Request id to its state [depth, m] and the position that must follow.
        self._known: OrderedDict[str, tuple[Scores, int]] = OrderedDict()

    def pooled(self, batch: RowBatch, scores: Scores) -> Scores:
        """Pool the scores [n, m] of a batch, whose rows of a request stand in order."""
        owners = batch.request_index
        with self._lock:
            if len(set(owners)) == len(owners):
                return self._step(batch, scores)
            found = np.empty_like(scores)
            owner = np.asarray(owners)
            for index in np.unique(owner).tolist():
                self._run(batch, np.flatnonzero(owner == index), scores, found)
            return found

    def _step(self, batch: RowBatch, scores: Scores) -> Scores:
        if not len(scores):
            return scores
        names = [batch.requests[index].request_id for index in batch.request_index]
        states = np.stack(
            [self._before(name, at) for name, at in zip(names, batch.positions, strict=True)]
        )
        found, after = self._pool.step(scores, states)
        for number, (name, at) in enumerate(zip(names, batch.positions, strict=True)):
            self._remember(name, after[number].copy(), at + 1)
        return found

    def _run(self, batch: RowBatch, rows: NDArray[np.int64], scores: Scores, found: Scores) -> None:
        name = batch.requests[batch.request_index[rows[0]]].request_id
        positions = np.asarray(batch.positions, dtype=np.int64)[rows]
        for part in np.split(rows, np.flatnonzero(np.diff(positions) != 1) + 1):
            first = batch.positions[part[0]]
            found[part], after = self._pool.run(scores[part], self._before(name, first))
            self._remember(name, after, first + len(part))

    def _before(self, name: str, position: int) -> Scores:
        state, expected = self._known.get(name, (None, -1))
        if state is None or expected != position:
            return self._pool.start(self._width)
        return state

    def _remember(self, name: str, state: Scores, position: int) -> None:
        self._known[name] = state, position
        self._known.move_to_end(name)
        while len(self._known) > self._slots:
            self._known.popitem(last=False)
