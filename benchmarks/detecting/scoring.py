"""One number a conversation, from what a monitor has spent on it; learnt on the fit part alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from detecting.evidence import PACKS, Remembering, Words, theme

Vector = NDArray[np.float64]
TOP_ROWS = 5
FOLDS = 5
NOTHING_SAID = -6.0  # log-odds of a conversation of which no decode was bought


@dataclass(frozen=True, slots=True)
class Sign:
    """What one decode says."""

    position: int
    log_odds: float  # that its theme is of a hostile conversation
    margin: float  # see Words.margins
    packs: frozenset[str]  # of the rules that matched
    fve: float


def of_screen(scores: Vector) -> Vector:
    """The largest score of a conversation's rows, and the mean of its largest five [2]."""
    if not len(scores):
        return np.zeros(2)
    top = np.sort(scores)[-TOP_ROWS:]
    return np.array([top[-1], top.mean()])


def of_decodes(signs: Sequence[Sign]) -> Vector:
    """What a conversation's decodes say together [8]."""
    if not signs:
        return np.array([NOTHING_SAID, NOTHING_SAID, 0.0, 0.0, -1.0, -1.0, 0.0, 0.0])
    odds = np.array([sign.log_odds for sign in signs])
    margins = np.array([sign.margin for sign in signs])
    hits = {pack: np.mean([pack in sign.packs for sign in signs]) for pack in PACKS}
    return np.array(
        [
            odds.max(),
            odds.mean(),
            float(any(sign.packs for sign in signs)),
            hits["harm"],
            margins.max(),
            margins.mean(),
            hits["jailbreak"] + hits["injection"],
            np.mean([sign.fve for sign in signs]),
        ]
    )


@dataclass(slots=True)
class Combiner:
    """Log-odds of hostility from features, by a penalised logistic regression."""

    strength: float = 1.0
    _model: Any = field(default=None, repr=False)

    def fit(self, features: Vector, hostile: NDArray[np.bool_]) -> Combiner:
        """Learn from [n, f] and [n]."""
        self._model = self._fresh().fit(features, hostile)
        return self

    def crossed(
        self, features: Vector, hostile: NDArray[np.bool_], groups: Sequence[Any]
    ) -> Vector:
        """Log-odds of rows by models that have not seen their group [n]."""
        folds = GroupKFold(min(FOLDS, len(set(groups))))
        found: Vector = cross_val_predict(
            self._fresh(),
            features,
            hostile,
            groups=groups,
            cv=folds,
            method="decision_function",
        )
        return found

    def score(self, features: Vector) -> Vector:
        """Log-odds [n] of [n, f]."""
        if not len(features):
            return np.zeros(0)
        found: Vector = self._model.decision_function(features)
        return found

    def _fresh(self) -> Any:
        model = LogisticRegression(C=self.strength, class_weight="balanced", max_iter=1_000)
        return make_pipeline(StandardScaler(), model)


@dataclass(frozen=True, eq=False, slots=True)
class ThemeReader:
    """How hostile the theme of a decode sounds to an encoder that has seen those of the fit part.

    Decodes of the fit part are read by models that have not seen their conversation, since the
    next model learns from what comes out.
    """

    encoder: Remembering
    words: Words
    model: Combiner
    crossed: Mapping[tuple[str, int], float]

    @classmethod
    def learnt(
        cls,
        decodes: Mapping[tuple[str, int], str],
        hostile: Mapping[str, bool],
        encoder: Remembering,
        words: Words,
    ) -> ThemeReader:
        """From texts of the fit part."""
        keys = sorted(decodes)
        vectors = encoder.encode([theme(decodes[key]) for key in keys]).astype(np.float64)
        labels = np.array([hostile[digest] for digest, _ in keys])
        model = Combiner(0.003)
        odds = model.crossed(vectors, labels, [digest for digest, _ in keys])
        return cls(
            encoder,
            words,
            model.fit(vectors, labels),
            dict(zip(keys, odds.tolist(), strict=True)),
        )

    def signs(
        self,
        decodes: Mapping[tuple[str, int], Mapping[str, Any]],
        matched: Mapping[tuple[str, int], Sequence[str]],
        pack_of: Mapping[str, str],
    ) -> dict[tuple[str, int], Sign]:
        """What each decode says."""
        keys = list(decodes)
        if not keys:
            return {}
        vectors = self.encoder.encode([theme(decodes[key]["text"]) for key in keys])
        odds = self.model.score(vectors.astype(np.float64))
        margins = self.words.margins(vectors)
        return {
            key: Sign(
                key[1],
                self.crossed.get(key, float(odd)),
                float(margin),
                frozenset(pack_of[name] for name in matched.get(key, ())),
                decodes[key]["fve"] or 0.0,
            )
            for key, odd, margin in zip(keys, odds, margins, strict=True)
        }
