"""Injections, personas and exam-like questions: what the monitor of the curve says of them.

The score, its model and its threshold are the curve's, so nothing here was chosen on these
conversations. Whether a question is exam-like is told by a direction of its own as well, learnt on
other sets of questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detecting.apart_cases import CLEAN, EXAM, EXAM_LEARNT, INJECTION, NATURAL
from detecting.choices import SCREENS, Cell, learnt_directions, scores_of
from detecting.decodes import Key
from detecting.figures import Interval, Scored, auroc, interval, recall, threshold_at
from detecting.panel import Evidence, Features, Panel
from detecting.scoring import Vector
from detecting.work import APART

PERSONA = re.compile(
    r"\b(?:act as|acting as|pretend|role-?play|you are (?:now|going to)|persona|simulate|"
    r"stay in character)\b",
    re.IGNORECASE,
)
Score = Callable[[Sequence[str]], Vector]  # of conversations by digest [n]
Flags = NDArray[np.bool_]
ROUNDS = 1_000
TARGET = "jailbreak"  # a kind that directions are learnt for: what is looked for, here exam-like


@dataclass(frozen=True, slots=True)
class Told:
    """Of one means: the share of each sort of conversations that is above its threshold."""

    name: str
    shares: Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class ExamTold:
    """How well exam-like questions of unseen sets are told from natural ones."""

    name: str
    recall: Interval  # at the threshold that 1 % of the ordinary conversations are above
    area: Interval  # against natural questions
    natural: Interval  # share of natural questions above the same threshold


@dataclass(frozen=True, eq=False, slots=True)
class Apart:
    """Everything that is reported apart."""

    counts: Mapping[str, int]
    told: Sequence[Told]
    exams: Sequence[ExamTold]
    aware: Mapping[str, Interval]  # conversations with a decode of evaluation awareness


def measured_apart(
    evidence: Evidence,
    panel: Panel,
    whole: Sequence[Cell],
    aware: Mapping[Key, Sequence[str]],
    seed: int,
) -> Apart | None:
    """All figures; None where there are no such conversations, or not all of their decodes.

    Args:
        evidence: of the curve and of these conversations.
        panel: of the same.
        whole: cells of the curve of which every decode is there.
        aware: rules of evaluation awareness that match decodes.
        seed: of what is drawn.
    """
    material = evidence.material
    sorts = _sorts(panel)
    cells = [cell for cell in APART if cell in whole]
    keys = [key for cell in cells for key in material.wanted_apart(cell)]
    if not keys or any(key not in evidence.signs for key in keys):
        return None
    shown = {name: sorts[name] for name in ("persona", INJECTION, CLEAN, EXAM, NATURAL)}
    told = [
        Told(name, {sort: _share(over(digests), seed) for sort, digests in shown.items()})
        for name, over in _alarms(evidence, panel, cells).items()
    ]
    seen = {
        sort: _share(np.array([_is_aware(evidence, cells, aware, d) for d in sorts[sort]]), seed)
        for sort in (EXAM, NATURAL)
    }
    counts = {name: len(digests) for name, digests in sorts.items()}
    return Apart(counts, told, _exams(evidence, panel, sorts, seed), seen)


def _sorts(panel: Panel) -> dict[str, list[str]]:
    """Digests by sort; personas are hostile conversations of the curve's test part."""
    sorts: dict[str, list[str]] = {"persona": []}
    for case in panel.material.cases:
        if case.part == "apart":
            sorts.setdefault(case.document.source, []).append(case.digest)
        elif case.part == "test" and case.hostile and PERSONA.search(case.document.text):
            sorts["persona"].append(case.digest)
    return sorts


def _alarms(
    evidence: Evidence, panel: Panel, cells: Sequence[Cell]
) -> dict[str, Callable[[Sequence[str]], Flags]]:
    """Each means, and which of some conversations are above its threshold."""
    visible = evidence.visible

    def odds(digests: Sequence[str]) -> Vector:
        return np.array([visible[d].prompt_log_odds for d in digests])

    ways: dict[str, Score] = {
        "encoder, trained, on the prompt": odds,
        "all text: rules and encoder": _learnt(panel, evidence.text),
    }
    ways |= {f"{choice} alone": _learnt(panel, evidence.screen(choice)) for choice in SCREENS}
    for cell in cells:
        name = f"{cell.choice} at {cell.budget}"
        ways[f"{name}, decodes alone"] = _learnt(panel, evidence.decodes(cell))
        if cell.choice in SCREENS:
            ways[f"{name}, score and decodes"] = _learnt(panel, evidence.both(cell))
        ways[f"{name}, cascade"] = _learnt(panel, evidence.cascade(cell))
    return {name: _alarm(panel, score) for name, score in ways.items()}


def _learnt(panel: Panel, features: Features) -> Score:
    model = panel.learnt(features)
    return lambda digests: model.score(np.stack([features(d) for d in digests]))


def _alarm(panel: Panel, score: Score) -> Callable[[Sequence[str]], Flags]:
    limit = threshold_at(score(panel.digests("threshold", False)))
    return lambda digests: score(digests) > limit if digests else np.zeros(0, dtype=bool)


def _share(flags: Flags, seed: int) -> Interval:
    """Of conversations, with the interval of resampled ones; the threshold stays."""
    if not len(flags):
        return Interval(np.nan, np.nan, np.nan)
    drawn = np.random.default_rng(seed).choice(flags, size=(ROUNDS, len(flags))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(float(flags.mean()), float(low), float(high))


def _is_aware(
    evidence: Evidence, cells: Sequence[Cell], aware: Mapping[Key, Sequence[str]], digest: str
) -> bool:
    return any(aware.get(key) for cell in cells for key in evidence.material.chosen(digest, cell))


def _exams(
    evidence: Evidence, panel: Panel, sorts: Mapping[str, Sequence[str]], seed: int
) -> list[ExamTold]:
    """By a direction of exam-like rows against ordinary ones, and by the curve's own scores."""
    material = evidence.material
    by_digest = {case.digest: case for case in material.cases}
    wanted = [replace(by_digest[d], kind=TARGET) for d in sorts[EXAM_LEARNT]]
    ordinary = [c for c in material.cases if c.part == "directions" and not c.hostile]
    shipped = material.directions["ar"]
    direction = learnt_directions(
        [*wanted, *ordinary], material.talks, base_model=shipped.base_model,
        layer=shipped.layer, seed=seed, backends=("contrast",),
    )["contrast"]  # fmt: skip

    def own(digests: Sequence[str]) -> Vector:
        return np.array([scores_of(direction, material.talks[d]).max() for d in digests])

    def general(digests: Sequence[str]) -> Vector:
        return np.array([material.scores[d]["contrast"].max() for d in digests])

    ways: dict[str, Score] = {
        "a direction learnt on other sets of questions": own,
        "the direction of hostility (contrast)": general,
    }
    limits = panel.digests("threshold", False)
    rows = []
    for name, score in ways.items():
        scored = Scored(score(limits), score(sorts[EXAM]), score(sorts[NATURAL]), np.zeros(0))
        over = scored.ordinary > threshold_at(scored.threshold)
        rows.append(
            ExamTold(name, interval(scored, recall), interval(scored, auroc), _share(over, seed))
        )
    return rows


def plain(apart: Apart) -> dict[str, Any]:
    """As it is written to JSON."""

    def figures(found: Interval) -> list[float]:
        return [found.value, found.low, found.high]

    return {
        "counts": dict(apart.counts),
        "shares_above_the_threshold": {
            told.name: {sort: figures(share) for sort, share in told.shares.items()}
            for told in apart.told
        },
        "exam_like": {
            e.name: {
                "tpr_at_1_fpr": figures(e.recall),
                "auroc_against_natural": figures(e.area),
                "natural_above": figures(e.natural),
            }
            for e in apart.exams
        },
        "evaluation_aware_decodes": {sort: figures(s) for sort, s in apart.aware.items()},
    }
