"""What a text claims, one thing at a time, and whether another text claims the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from rapidfuzz import fuzz

from nae_monitor.decode.form import BETWEEN, Parts, parts_of

MIN_WORD = 4  # characters: shorter quoted words stand in most texts by chance
SAME_WORD = 85.0  # Levenshtein ratio, 0..100, from which two spellings are one word
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W\d_]+)?")


class ClaimType(StrEnum):
    """What kind of thing is claimed; each is wrong at a rate of its own."""

    TOKEN = "token"  # noqa: S105 - the token at the position
    EXPECTED = "expected"  # the likeliest next token
    THEME = "theme"  # the kind that the theme names
    QUOTATION = "quotation"  # a quoted word
    NAME = "name"  # a quoted word with a capital
    NUMBER = "number"  # a quoted word with a digit


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim; ``content`` in the words of the text."""

    type: ClaimType
    content: str


def claims_of(text: str) -> tuple[Claim, ...]:
    """The claims of a text of the known form, each once; none of any other text."""
    found = parts_of(text)
    if found is None:
        return ()
    likeliest = found.following.partition(BETWEEN)[0]
    claims = [
        Claim(ClaimType.TOKEN, found.last_token),
        Claim(ClaimType.EXPECTED, likeliest),
        Claim(ClaimType.THEME, found.label),
        *(Claim(_type_of(word), word) for word in _words(found.last)),
    ]
    return tuple(dict.fromkeys(claim for claim in claims if claim.content.strip()))


def recurs(claim: Claim, text: str) -> bool:
    """Whether ``text`` claims the same; a text out of form claims nothing.

    Tokens and labels are compared exactly, quoted words by spelling (:data:`SAME_WORD`), and the
    likeliest next token may be any of the other text's alternatives.
    """
    found = parts_of(text)
    return found is not None and _in_parts(claim, found)


def grounded(claim: Claim, transcript: str) -> bool | None:
    """Whether the words of a claim stand in the transcript up to its position.

    For a quoted word or a token this checks the claim itself; None for a theme and for what is
    expected, which no transcript can show.
    """
    if claim.type in (ClaimType.THEME, ClaimType.EXPECTED):
        return None
    if claim.type is ClaimType.TOKEN:
        return claim.content.replace("\\n", "\n").strip() in transcript.replace('"', "'")
    return any(_same_word(claim.content, word) for word in _words(transcript))


def _in_parts(claim: Claim, found: Parts) -> bool:
    match claim.type:
        case ClaimType.TOKEN:
            return claim.content == found.last_token
        case ClaimType.EXPECTED:
            return claim.content in found.following.split(BETWEEN)
        case ClaimType.THEME:
            return claim.content == found.label
    return any(_same_word(claim.content, word) for word in _words(found.last))


def _words(text: str) -> list[str]:
    plain = text.replace("\\n", " ")
    return [w for w in _WORD.findall(plain) if len(w) >= MIN_WORD or any(map(str.isdigit, w))]


def _type_of(word: str) -> ClaimType:
    if any(map(str.isdigit, word)):
        return ClaimType.NUMBER
    return ClaimType.NAME if word[0].isupper() else ClaimType.QUOTATION


def _same_word(one: str, other: str) -> bool:
    if any(map(str.isdigit, one)):
        return one == other
    return fuzz.ratio(one.casefold(), other.casefold()) >= SAME_WORD
