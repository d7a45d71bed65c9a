"""The texts decoded so far around each position of a request, and what they say of each other."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from nae_monitor.decode.support.calibration import SupportCalibration
from nae_monitor.decode.support.claims import Claim, ClaimType, claims_of
from nae_monitor.decode.support.signals import signals_of
from nae_monitor.records import Decoding

REACH = 1  # positions to either side whose texts count, as in the calibration
MAX_TURNS = 1_000  # whose texts are held; the oldest are let go, and are unknown from then on
MAX_TEXTS = 512  # of one turn, likewise


@dataclass(frozen=True, slots=True)
class Place:
    """Where a decode stands: which generation, which token."""

    turn: Hashable
    position: int  # tokens, from 0
    sampled: bool  # a further text of its vector, not the greedy one


@dataclass(frozen=True, slots=True)
class _Text:
    place: Place
    decoding: Decoding


class Recurrence:
    """Fills in the support of decodes from what else was decoded of the same turn. One thread.

    What is scored is the theme of the greedy text: of its claims the one that rules on subjects
    look for and that no transcript shows. The figure goes to every text of that position that
    names the same; one that names another has none. It costs no decode by itself:
    ``support_decodes`` and ``support_s`` say what the texts that it rests on took.
    """

    def __init__(self, calibration: SupportCalibration | None) -> None:
        self._calibration = calibration
        self._turns: OrderedDict[Hashable, list[_Text]] = OrderedDict()

    def clear(self) -> None:
        """Hold nothing: for a forked child."""
        self._turns.clear()

    def ended(self, turn: Hashable) -> None:
        """Let go of a turn that nothing more comes of."""
        self._turns.pop(turn, None)

    def scored(self, decoded: Sequence[tuple[Place, Decoding]]) -> list[Decoding]:
        """The decodings, those with enough further texts with their figures, in order."""
        if self._calibration is None:
            return [decoding for _, decoding in decoded]
        for place, decoding in decoded:
            self._hold(place, decoding)
        return [self._scored(place, decoding) for place, decoding in decoded]

    def _hold(self, place: Place, decoding: Decoding) -> None:
        texts = self._turns.setdefault(place.turn, [])
        self._turns.move_to_end(place.turn)
        texts.append(_Text(place, decoding))
        del texts[:-MAX_TEXTS]
        while len(self._turns) > MAX_TURNS:
            self._turns.popitem(last=False)

    def _scored(self, place: Place, decoding: Decoding) -> Decoding:
        texts = self._turns.get(place.turn, [])
        here = [t for t in texts if t.place.position == place.position]
        greedy = next((t.decoding for t in here if not t.place.sampled), None)
        claim = None if greedy is None else _theme(greedy.text)
        known = self._calibration
        if known is None or greedy is None or claim is None or greedy.nla_id != known.nla_id:
            return decoding
        if _theme(decoding.text) != claim:
            return decoding
        further = [t for t in texts if not t.decoding.reused]  # a copy agrees with its original
        samples = [t.decoding for t in further if _is_sample(t.place, place)]
        beside = [t.decoding for t in further if _is_beside(t.place, place)]
        signals = signals_of(claim, [d.text for d in samples], [d.text for d in beside], greedy)
        figure = known.unsupported(claim, signals)
        if figure is None:
            return decoding
        return replace(
            decoding,
            support=round(1 - figure, 4),
            support_decodes=len(samples) + len(beside),
            support_s=sum(other.seconds for other in (*samples, *beside)),
        )


def _is_sample(one: Place, other: Place) -> bool:
    return one.sampled and one.position == other.position


def _is_beside(one: Place, other: Place) -> bool:
    return not one.sampled and 0 < abs(one.position - other.position) <= REACH


def _theme(text: str) -> Claim | None:
    return next((c for c in claims_of(text) if c.type is ClaimType.THEME), None)
