"""Which conversations are monitored, and what each part of them is for.

A near-duplicate family is never divided between parts. The pair's own training documents serve
to learn directions and, a few, to choose thresholds on; what is reported is of families that
neither the pair nor anything fitted here has seen.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from nae_monitor.errors import InputDataError
from nae_monitor.train.corpus import TrainingDocument, read_corpus
from nae_monitor.train.families import family_ids
from nae_monitor.train.files import make_directory, replacing
from nae_monitor.train.recipe import Recipe
from nae_monitor.train.splits import Wheels, split_corpus
from nae_monitor.train.themes import KINDS, theme_of
from nae_monitor.train.wheels import corpus_wheels

Part = Literal["directions", "fit", "threshold", "test", "foreign", "apart"]
PARTS: tuple[Part, ...] = get_args(Part)
DRAWN = PARTS[:-1]  # of the corpus; those of apart_cases.py are of other sources
MORE_SOURCES = {"chitchat": "chat", "botocore": "technical", "own/instructions": "instructions"}
HARD = "hard"  # ordinary messages of the sources that the hostile ones come from
THRESHOLD_SHARE = 0.35  # of families that the pair was trained on; the others are for directions
OPEN = "open"  # in the same sources, but not in the recipe's corpus


@dataclass(frozen=True, slots=True)
class Sizes:
    """At most so many conversations of each part."""

    directions: int = 500  # of hostile and of ordinary ones each
    fit: int = 320  # likewise, the validation split of the pair
    threshold: int = 1_000  # ordinary
    hostile: int = 400  # test
    ordinary: int = 350  # test
    foreign: int = 100  # ordinary, of a source that nothing was fitted on
    more_chat: int = 1_400  # messages beyond the recipe's own, from the same sources
    more_technical: int = 600


MANY = 1_000  # conversations for directions, of each sort, where their rows are at hand
QUICK = Sizes(60, 24, 100, 32, 40, 12, 200, 100)


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation to come: its user message, what it is, what it is for."""

    document: TrainingDocument
    part: Part
    kind: str
    family: str

    @property
    def digest(self) -> str:
        """Identity of the conversation."""
        return self.document.digest

    @property
    def hostile(self) -> bool:
        """Whether it asks for harm or pushes against the model's rules."""
        return KINDS[self.kind].harmful

    @property
    def stratum(self) -> str:
        """Which sort of ordinary message."""
        return MORE_SOURCES.get(self.document.source, HARD)


def choose(recipe: Recipe, sizes: Sizes, seed: int, wheels: Wheels = corpus_wheels) -> list[Case]:
    """The conversations of all parts, the same for the same seed.

    Raises:
        InputDataError: the corpus cannot be read, or has nothing for a part.
    """
    base = split_corpus(recipe, wheels)
    known = {document.digest for document, _ in base}
    more = read_corpus(
        wheels(),
        seed=recipe.seed + 1,
        chat_limit=sizes.more_chat,
        technical_limit=sizes.more_technical,
    )
    extra = [(d, OPEN) for d in more if d.source in MORE_SOURCES and d.digest not in known]
    return _drawn(divided([*base, *extra], seed), sizes)


def kept(place: Path, make: Callable[[], list[Case]]) -> list[Case]:
    """The conversations of an earlier run, or those of ``make``, which are then kept there."""
    if not place.exists():
        make_directory(place.parent)
        rows = [[asdict(c.document), c.part, c.kind, c.family] for c in make()]
        with replacing(place) as temporary:
            temporary.write_text(json.dumps(rows), encoding="utf-8")
    rows = json.loads(place.read_text(encoding="utf-8"))
    return [Case(TrainingDocument(**document), *rest) for document, *rest in rows]


def divided(documents: Sequence[tuple[TrainingDocument, str]], seed: int) -> list[Case]:
    """Every document in its part, in an order drawn by the seed; families stay whole.

    Args:
        documents: each with the recipe's split, or ``open`` where the recipe does not have it.
        seed: of order and parts.
    """
    families = _families([document for document, _ in documents])
    origin = _origins(families, [split for _, split in documents])
    cases = [
        Case(
            d, _part(origin[family], _share(family, seed)), theme_of(d.digest, d.kind).kind, family
        )
        for (d, _), family in zip(documents, families, strict=True)
    ]
    return sorted(cases, key=lambda case: _share(case.digest, seed))


def _families(documents: Sequence[TrainingDocument]) -> list[str]:
    """The smallest digest of each document's family: numbers would differ from run to run."""
    numbers = family_ids([document.text for document in documents])
    smallest: dict[int, str] = {}
    for document, number in zip(documents, numbers, strict=True):
        smallest[number] = min(smallest.get(number, document.digest), document.digest)
    return [smallest[number] for number in numbers]


def _share(name: str, seed: int) -> float:
    """A place from 0 to 1 that a name and a seed decide."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]) / 2**64


def _origins(families: Sequence[str], splits: Sequence[str]) -> dict[str, str]:
    """The recipe's split of each family; one that touches its training split was seen."""
    found: dict[str, str] = {}
    order = ("train", "test", "validation", "ood", OPEN)
    for family, split in zip(families, splits, strict=True):
        found[family] = min(found.get(family, OPEN), split, key=order.index)
    return found


def _part(origin: str, share: float) -> Part:
    if origin == "train":
        return "threshold" if share < THRESHOLD_SHARE else "directions"
    known: dict[str, Part] = {"test": "test", "validation": "fit", "ood": "foreign"}
    if origin in known:
        return known[origin]
    return "threshold" if share < 0.8 else "test"


def _drawn(pools: Sequence[Case], sizes: Sizes) -> list[Case]:
    """As many of each part as are wanted; ordinary ones of threshold and test in one mixture."""
    by = {
        (part, hostile): [c for c in pools if c.part == part and c.hostile == hostile]
        for part in DRAWN
        for hostile in (True, False)
    }
    test = by["test", False][: sizes.ordinary]
    mixture = Counter(case.stratum for case in test)
    threshold = [
        case
        for stratum, count in mixture.items()
        for case in [c for c in by["threshold", False] if c.stratum == stratum][
            : round(sizes.threshold * count / len(test))
        ]
    ]
    chosen = [
        *by["directions", True][: sizes.directions],
        *by["directions", False][: sizes.directions],
        *by["fit", True][: sizes.fit],
        *by["fit", False][: sizes.fit],
        *threshold,
        *by["test", True][: sizes.hostile],
        *test,
        *by["foreign", False][: sizes.foreign],
    ]
    for part in DRAWN:
        if not any(case.part == part for case in chosen):
            raise InputDataError(f"the corpus has no conversations for {part}")
    return chosen


def counts(cases: Sequence[Case]) -> dict[str, int]:
    """How many conversations there are of each part and sort."""
    named = (f"{c.part}, {'hostile' if c.hostile else 'ordinary'}" for c in cases)
    return dict(sorted(Counter(named).items()))
