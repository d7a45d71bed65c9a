"""What pooling scores over the tokens of a conversation is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from detecting.choices import Choice
from detecting.figures import Interval, Scored, auroc, interval, recall
from detecting.outcome import difference
from detecting.panel import Panel
from detecting.rows import Talk
from detecting.scoring import of_screen
from detecting.work import Material
from nae_monitor.screen import Directions, Pool

POOLED: tuple[Choice, ...] = ("ar", "contrast")
WINDOWS = (4, 8, 16)
POOLS = (None, *(Pool(kind, tokens) for kind in ("ema", "max") for tokens in WINDOWS))
Scale = Literal["shipped", "pooled"]
SCALES: tuple[Scale, ...] = get_args(Scale)
Table = NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class Pooling:
    """One way to pool the scores of one set of directions, measured by conversation."""

    choice: Choice
    scale: Scale
    pool: Pool | None
    scored: Scored
    by_largest: Scored
    recall: Interval  # by the two figures of a conversation, as the screens in detection.py
    area: Interval
    largest: Interval  # recall by the largest score alone
    gain: Interval | None  # recall less that without a pool on the same scale; None: that is it
    largest_gain: Interval | None  # likewise, by the largest score alone


def poolings(material: Material) -> Iterator[Pooling]:
    """Every screen on either scale, without a pool and with each.

    A pool begins anew behind a token that has no row (template tokens, between prompt and reply).
    Scores are in the directions' own deviations, as the screen has them without a pool, or, on the
    scale ``pooled``, in deviations of what they pool to in the ordinary conversations of the part
    that scores are learnt on.
    """
    panel = Panel(material)
    for choice in POOLED:
        whole = {d: _table(material.directions[choice], material.talks[d]) for d in material.scores}
        for scale in SCALES:
            plain: Pooling | None = None
            for pool in POOLS:
                best = _best(material, whole, scale, pool)
                found = _measured(panel, choice, scale, pool, best, plain)
                plain = plain or found
                yield found


def _measured(
    panel: Panel,
    choice: Choice,
    scale: Scale,
    pool: Pool | None,
    best: Mapping[str, Table],
    plain: Pooling | None,
) -> Pooling:
    figures = {digest: of_screen(scores.astype(np.float64)) for digest, scores in best.items()}
    scored = panel.scored(figures.__getitem__)
    largest = panel.raw(lambda digests: np.array([figures[digest][0] for digest in digests]))
    return Pooling(
        choice,
        scale,
        pool,
        scored,
        largest,
        interval(scored, recall),
        interval(scored, auroc),
        interval(largest, recall),
        None if plain is None else difference(scored, plain.scored),
        None if plain is None else difference(largest, plain.by_largest),
    )


def _best(
    material: Material, whole: Mapping[str, Table], scale: Scale, pool: Pool | None
) -> dict[str, Table]:
    """The largest score of each row [n]."""
    talks = material.talks
    found = {d: pooled(pool, table, talks[d].positions.numpy()) for d, table in whole.items()}
    if scale == "shipped":
        return {digest: table.max(axis=1) for digest, table in found.items()}
    ordinary = material.part("fit", False)
    prompt = np.concatenate([talks[digest].is_prompt.numpy() for digest in ordinary])
    rows = np.concatenate([found[digest] for digest in ordinary])
    known = {read: _scale(rows[prompt == read]) for read in (False, True)}
    best = {}
    for digest, table in found.items():
        read = talks[digest].is_prompt.numpy()[:, None]
        means, deviations = (np.where(read, known[True][i], known[False][i]) for i in (0, 1))
        best[digest] = ((table - means) / deviations).max(axis=1)
    return best


def _scale(rows: Table) -> tuple[Table, Table]:
    deviations: Table = np.maximum(rows.std(axis=0, ddof=1), 1e-9)
    return rows.mean(axis=0), deviations


def _table(directions: Directions, talk: Talk) -> Table:
    found: Table = directions.scores(talk.vectors.float(), talk.is_prompt).numpy()
    return found


def pooled(pool: Pool | None, scores: Table, positions: NDArray[np.int64]) -> Table:
    """Scores [n, m] pooled within each run of positions [n] that follow one another."""
    if pool is None:
        return scores
    borders = np.flatnonzero(np.diff(positions) != 1) + 1
    parts = [part for part in np.split(scores, borders) if len(part)]
    return np.concatenate([pool.run(part, pool.start(part.shape[1]))[0] for part in parts])
