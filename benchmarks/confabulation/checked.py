"""Which claims of the drawn texts are true: by the document, and by the target itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from confabulation.drawn import Drawn
from nae_monitor.decode.form import BETWEEN
from nae_monitor.decode.support import Claim, ClaimType, Signals, claims_of, grounded, recurs
from nae_monitor.decode.support.fitting import CheckedClaim


@dataclass(frozen=True, slots=True)
class Checked:
    """A claim of a greedy text, its signals, and what else was measured of its text."""

    type: ClaimType
    claim: CheckedClaim
    gain_empty: float
    gain_token: float
    grounded_share: float  # of the text's quoted words that stand in the document so far


def check(drawn: Sequence[Drawn]) -> list[Checked]:
    """Every claim that can be checked, by :func:`truth`."""
    found: list[Checked] = []
    for one in drawn:
        share = _grounded_share(one)
        for claim in claims_of(one.text):
            told = truth(claim, one)
            if told is not None:
                checked = CheckedClaim(signals(claim, one), told, one.digest)
                found.append(Checked(claim.type, checked, one.gain_empty, one.gain_token, share))
    return found


def truth(claim: Claim, one: Drawn) -> bool | None:
    """Whether the claim is true; None where nothing can tell.

    The token and the quoted words must stand in the document up to the position; what is expected
    must be what follows there or among the target's three likeliest; the theme must name the kind
    that the document's source has, where its reader could tell.
    """
    match claim.type:
        case ClaimType.TOKEN:
            return claim.content == one.token
        case ClaimType.EXPECTED:
            real = {one.next_token, *one.expected.split(BETWEEN)}
            return claim.content.strip() in {word.strip() for word in real}
        case ClaimType.THEME:
            return claim.content == one.kind if one.kind else None
    return bool(grounded(claim, one.before))


def signals(claim: Claim, one: Drawn) -> Signals:
    """What the texts beside say of a claim of the greedy one."""
    return Signals(
        len(one.samples),
        sum(recurs(claim, text) for text in one.samples),
        len(one.neighbours),
        sum(recurs(claim, text) for text in one.neighbours),
        one.fve,
        one.rank_share,
    )


def thinned(drawn: Sequence[Drawn]) -> list[Drawn]:
    """Each with all of its texts, and again with fewer, as at run time: for the fit alone."""
    fewer = [
        replace(one, samples=one.samples[:n], neighbours=one.neighbours[:k])
        for one in drawn
        for n, k in ((2, 0), (3, len(one.neighbours)), (len(one.samples), 0))
    ]
    return [*drawn, *fewer]


def _grounded_share(one: Drawn) -> float:
    told = [grounded(claim, one.before) for claim in claims_of(one.text)]
    known = [value for value in told if value is not None]
    return sum(known) / len(known) if known else 0.0
