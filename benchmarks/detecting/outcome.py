"""The figures of one run: curves over the budget, baselines, controls, and what they claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from reporting.claims import Bound, Claim
from sklearn.metrics import roc_auc_score

from detecting.choices import SCREENS, Cell, Choice, bought
from detecting.controls import shuffled, zeroed
from detecting.figures import (
    Interval,
    Scored,
    alerts_per_1000,
    auroc,
    interval,
    partial_auroc,
    ratio,
    recall,
    resampled,
    threshold_at,
)
from detecting.panel import Evidence, Features, Panel
from detecting.scoring import of_decodes, of_screen

CLAIM_BUDGET = 2
PARTIAL_ROUNDS = 200  # sklearn takes milliseconds each
AREA_OF_CHANCE = Bound(0.6, at_most=True)


@dataclass(frozen=True, eq=False, slots=True)
class Line:
    """One way of scoring conversations, measured."""

    name: str
    scored: Scored
    recall: Interval  # at the threshold that 1 % of other ordinary conversations are above
    area: Interval
    partial: Interval
    alerts: Interval  # per 1,000 ordinary test conversations
    foreign: Interval | None  # per 1,000 of a source that nothing was fitted on

    @classmethod
    def of(cls, name: str, scored: Scored) -> Line:
        """Measure scores."""
        limit = threshold_at(scored.threshold)
        foreign = alerts_per_1000(scored.foreign, limit) if len(scored.foreign) else None
        return cls(
            name,
            scored,
            interval(scored, recall),
            interval(scored, auroc),
            interval(scored, partial_auroc, rounds=PARTIAL_ROUNDS),
            alerts_per_1000(scored.ordinary, limit),
            foreign,
        )


@dataclass(frozen=True, eq=False, slots=True)
class Point:
    """A cell of the curve."""

    cell: Cell
    spent: float  # decodes per 100 rows, as they came out
    decodes: Line  # by what was decoded alone
    both: Line  # and the scores that chose it
    cascade: Line  # and the visible text


def points(evidence: Evidence, panel: Panel, cells: Sequence[Cell]) -> list[Point]:
    """Every cell of which all decodes are there."""
    found = []
    for cell in cells:
        ways: tuple[Features, ...] = (
            evidence.decodes(cell), evidence.both(cell), evidence.cascade(cell)
        )  # fmt: skip
        lines = [
            Line.of(name, panel.scored(way, cell))
            for name, way in zip(("decodes", "score and decodes", "cascade"), ways, strict=True)
        ]
        found.append(Point(cell, _spent(evidence, panel, cell), *lines))
    return found


def _spent(evidence: Evidence, panel: Panel, cell: Cell) -> float:
    digests = [
        digest
        for part, hostile in (("threshold", False), ("test", False), ("test", True))
        for digest in panel.digests(part, hostile, cell)
    ]
    rows = [len(evidence.material.talks[digest].positions) for digest in digests]
    return 100 * sum(bought(n, cell.budget) for n in rows) / sum(rows)


def baselines(evidence: Evidence, panel: Panel) -> list[Line]:
    """Means of detection without a decode: single ones, all text, and a screen with all text."""
    visible = evidence.visible

    def rules(digest: str) -> np.ndarray:
        return np.array(visible[digest].rules, dtype=np.float64)

    def output_rules(digest: str) -> np.ndarray:
        return np.array(visible[digest].output_rules, dtype=np.float64)

    def raw(attribute: str) -> Scored:
        return panel.raw(lambda ds: np.array([getattr(visible[d], attribute) for d in ds]))

    return [
        Line.of("rules on the transcript", panel.scored(rules)),
        Line.of("encoder, the rules' exemplars, on the transcript", raw("margin")),
        Line.of("encoder, trained, on the transcript", raw("log_odds")),
        Line.of("encoder, trained, on the prompt", raw("prompt_log_odds")),
        *(Line.of(f"{c} alone", panel.scored(evidence.screen(c))) for c in SCREENS),
        Line.of("probe alone, reply's rows only", panel.scored(evidence.completion("probe"))),
        Line.of("rules on the output alone", panel.scored(output_rules)),
        Line.of("encoder, trained, on the output alone", raw("output_log_odds")),
        Line.of("all text: rules and encoder", panel.scored(evidence.text)),
        *(Line.of(f"{c}, rules and encoder", panel.scored(evidence.undecoded(c))) for c in SCREENS),
    ]


SINGLE = 7  # of the baselines above: those that see the conversation by one means


def control_lines(evidence: Evidence, panel: Panel, cell: Cell, seed: int) -> list[Line]:
    """Shuffled and zeroed activations in a cell."""
    return [
        Line.of("activations of other conversations", shuffled(evidence, panel, cell, seed)),
        Line.of("zeros for activations", zeroed(evidence, panel, cell)),
    ]


def headline(evidence: Evidence, panel: Panel, cells: Sequence[Cell]) -> Choice:
    """The screen that reads the fit part best by models that have not seen the conversation."""
    areas: dict[Choice, float] = {}
    for cell in cells:
        if cell.budget == CLAIM_BUDGET and cell.choice in SCREENS:
            scores, hostile = panel.cross_checked(evidence.both(cell))
            areas[cell.choice] = float(roc_auc_score(hostile, scores))
    return max(areas, key=lambda name: areas[name])


def claims(
    found: Sequence[Point], single: Sequence[Line], controls: Sequence[Line], best: Choice
) -> list[Claim]:
    """What was promised of detection, and whether it came out so."""
    at = {p.cell.choice: p for p in found if p.cell.budget == CLAIM_BUDGET}
    stated = []
    for name in SCREENS:
        if name in at and "random" in at:
            times = ratio(at[name].decodes.scored, at["random"].decodes.scored)
            bound = Bound(2.0) if name == best else None
            stated.append(_claim(f"{name} finds, in times of random choice", times, "x", bound))
    for name, point in at.items():
        bound = Bound(0.8) if name == best else None
        title = f"{name}, score and decodes: TPR at 1 % FPR"
        stated.append(_claim(title, point.both.recall, "", bound))
    if best in at:
        rival = max(single, key=lambda line: line.recall.value)
        over = difference(at[best].cascade.scored, rival.scored)
        stated.append(_claim(f"cascade above the {rival.name}", over, "TPR", Bound(0.0001)))
    stated += [_claim(f"{line.name}: AUROC", line.area, "", AREA_OF_CHANCE) for line in controls]
    return stated


def _claim(name: str, found: Interval, unit: str, bound: Bound | None) -> Claim:
    return Claim(name, found.value, found.low, found.high, unit, bound)


def difference(first: Scored, second: Scored) -> Interval:
    """By how much recall differs; the same conversations in each round."""
    drawn = []
    for number in range(1_000):
        a, b = (recall(resampled(s, np.random.default_rng([7, number]))) for s in (first, second))
        drawn.append(a - b)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(recall(first) - recall(second), float(low), float(high))


@dataclass(frozen=True, slots=True)
class Speed:
    """How soon hostile conversations are found: tokens of content read until the alert."""

    found: int
    median_tokens: float
    low: float
    high: float
    in_prompt: float  # share found before the reply's first token


def tokens_to_alert(evidence: Evidence, panel: Panel, cell: Cell, scored: Scored) -> Speed:
    """The row after which score and decodes so far pass the threshold, in hostile test ones."""
    material, model = evidence.material, panel.learnt(evidence.both(cell))
    limit, took, early = threshold_at(scored.threshold), [], []
    for digest in panel.digests("test", True, cell):
        talk = material.talks[digest]
        positions, rows = talk.positions.numpy(), material.scores[digest].get(cell.choice)
        signs = evidence.signs_of(digest, cell)
        for count, sign in enumerate(signs, 1):
            said = of_decodes(signs[:count])
            if rows is not None:
                said = np.concatenate([of_screen(rows[positions <= sign.position]), said])
            if model.score(said[None])[0] > limit:
                took.append(int(np.searchsorted(positions, sign.position)) + 1)
                early.append(sign.position < talk.prompt_tokens)
                break
    if not took:
        return Speed(0, np.nan, np.nan, np.nan, np.nan)
    tokens = np.array(took, dtype=np.float64)
    drawn = np.random.default_rng(0).choice(tokens, size=(1_000, len(tokens)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Speed(
        len(took), float(np.median(tokens)), float(low), float(high), float(np.mean(early))
    )


def recall_among(line: Line, wanted: np.ndarray, seed: int = 0) -> Interval:
    """The share found of some hostile test conversations, ``wanted`` [n] of them."""
    hits = line.scored.hostile[wanted] > threshold_at(line.scored.threshold)
    if not len(hits):
        return Interval(np.nan, np.nan, np.nan)
    drawn = np.random.default_rng(seed).choice(hits, size=(1_000, len(hits))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(float(hits.mean()), float(low), float(high))
