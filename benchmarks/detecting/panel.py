"""Scores of all conversations from one sort of evidence, learnt on the fit part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detecting.choices import SCREENS, Cell, in_subset
from detecting.decodes import Key
from detecting.evidence import OUTPUT, PACKS, WHOLE, Remembering, Words
from detecting.figures import Scored
from detecting.scoring import Combiner, Sign, Vector, of_decodes, of_screen
from detecting.work import Material

Features = Callable[[str], Vector]
ENCODER_STRENGTH = 1.0  # inverse penalty of the encoder's model


@dataclass(frozen=True, slots=True)
class Visible:
    """What is made of one conversation's visible text."""

    log_odds: float  # of the encoder's model, on prompt and reply
    prompt_log_odds: float  # likewise, of a model of prompts on the prompt alone
    output_log_odds: float  # likewise, of replies
    margin: float  # see Words.margins
    rules: tuple[int, ...]  # that match prompt and reply, by pack
    output_rules: tuple[int, ...]

    @property
    def features(self) -> Vector:
        """What the cascade takes of it [6]."""
        return np.array(
            [self.log_odds, self.prompt_log_odds, self.margin, *self.rules], dtype=np.float64
        )


def read_texts(
    material: Material,
    shown: Mapping[str, tuple[str, str]],
    matched: Mapping[Key, Sequence[str]],
    pack_of: Mapping[str, str],
    encoder: Remembering,
    words: Words,
) -> dict[str, Visible]:
    """The visible text of every conversation, by an encoder's model of the part for directions."""
    digests = [case.digest for case in material.cases]
    learn = np.array([case.part == "directions" for case in material.cases])
    hostile = np.array([case.hostile for case in material.cases])
    whole = encoder.encode(["\n".join(shown[digest]) for digest in digests])
    prompt, output = (encoder.encode([shown[d][side] for d in digests]) for side in (0, 1))
    odds = [
        Combiner(ENCODER_STRENGTH)
        .fit(vectors[learn].astype(np.float64), hostile[learn])
        .score(vectors.astype(np.float64))
        for vectors in (whole, prompt, output)
    ]
    margins = words.margins(whole)

    def counted(key: Key) -> tuple[int, ...]:
        names = [pack_of[name] for name in matched.get(key, ())]
        return tuple(names.count(pack) for pack in PACKS)

    return {
        digest: Visible(
            float(odds[0][i]),
            float(odds[1][i]),
            float(odds[2][i]),
            float(margins[i]),
            counted((digest, WHOLE)),
            counted((digest, OUTPUT)),
        )
        for i, digest in enumerate(digests)
    }


@dataclass(frozen=True, eq=False, slots=True)
class Panel:
    """The conversations whose scores count."""

    material: Material

    def digests(self, part: str, hostile: bool, cell: Cell | None = None) -> list[str]:
        """Of one part; those of a large budget's subset where ``cell`` has one."""
        found = self.material.part(part, hostile)
        return [
            d for d in found if part == "fit" or cell is None or not cell.is_subset or in_subset(d)
        ]

    def learnt(self, features: Features) -> Combiner:
        """A model of the fit part."""
        cases = self.material.fitted
        rows = np.stack([features(case.digest) for case in cases])
        return Combiner().fit(rows, np.array([case.hostile for case in cases]))

    def cross_checked(self, features: Features) -> tuple[Vector, NDArray[np.bool_]]:
        """Scores of the fit part by models that have not seen the conversation, and its labels."""
        cases = self.material.fitted
        rows = np.stack([features(case.digest) for case in cases])
        hostile = np.array([case.hostile for case in cases])
        return Combiner().crossed(rows, hostile, [case.family for case in cases]), hostile

    def scored(
        self, features: Features, cell: Cell | None = None, model: Combiner | None = None
    ) -> Scored:
        """Scores by a model of these features, or by ``model``."""
        model = model or self.learnt(features)
        return self.raw(lambda digests: model.score(_stacked(features, digests)), cell)

    def raw(self, score: Callable[[Sequence[str]], Vector], cell: Cell | None = None) -> Scored:
        """Scores that nothing has to be learnt for."""
        places = {
            "threshold": ("threshold", False),
            "hostile": ("test", True),
            "ordinary": ("test", False),
            "foreign": ("foreign", False),
        }
        return Scored(
            **{f.name: score(self.digests(*places[f.name], cell)) for f in fields(Scored)}
        )


def _stacked(features: Features, digests: Sequence[str]) -> Vector:
    return np.stack([features(d) for d in digests]) if digests else np.zeros((0, 1))


@dataclass(frozen=True, eq=False, slots=True)
class Evidence:
    """All that was found out, as features by conversation."""

    material: Material
    signs: Mapping[Key, Sign]
    visible: Mapping[str, Visible]

    def signs_of(self, digest: str, cell: Cell) -> list[Sign]:
        """What the cell's decodes of a conversation say, in the order of their tokens."""
        return [self.signs[key] for key in sorted(self.material.chosen(digest, cell))]

    def screen(self, choice: Any) -> Features:
        """Scores of all rows along one set of directions."""
        return lambda digest: of_screen(self.material.scores[digest][choice])

    def completion(self, choice: Any) -> Features:
        """Scores of the reply's rows alone."""

        def found(digest: str) -> Vector:
            prompt = self.material.talks[digest].is_prompt.numpy()
            return of_screen(self.material.scores[digest][choice][~prompt])

        return found

    def decodes(self, cell: Cell) -> Features:
        """The decodes alone."""
        return lambda digest: of_decodes(self.signs_of(digest, cell))

    def both(self, cell: Cell) -> Features:
        """The screen's scores and the decodes; the decodes alone where chance chose them."""
        if cell.choice not in SCREENS:
            return self.decodes(cell)
        parts = self.screen(cell.choice), self.decodes(cell)
        return lambda digest: np.concatenate([part(digest) for part in parts])

    def text(self, digest: str) -> Vector:
        """The visible text alone: rules and encoder."""
        return self.visible[digest].features

    def undecoded(self, choice: Any) -> Features:
        """The cascade as it is where nothing is decoded."""
        screen = self.screen(choice)
        return lambda digest: np.concatenate([screen(digest), self.text(digest)])

    def cascade(self, cell: Cell) -> Features:
        """Screen, decodes, and rules and encoder on the visible text."""
        both = self.both(cell)
        return lambda digest: np.concatenate([both(digest), self.text(digest)])
