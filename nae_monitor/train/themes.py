"""What a conversation is about: twenty kinds, and a written phrase for many training documents.

The phrases were written for this project by readers of the documents and lie beside this module,
keyed by document hash; the documents themselves are never committed. ``phrases_check.tsv`` holds
what a second reader said of 200: kind right in 171, arguable in 21, wrong in 8; phrase right
in 188, imprecise in 7, wrong in 5. A document without a phrase is described by its kind alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from nae_monitor.errors import InputDataError

PHRASES = "phrases.tsv"  # digest prefix, kind, phrase
DIGEST_CHARACTERS = 16
HARMFUL = "harmful request, "


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the twenty kinds of conversation."""

    label: str  # as explanations name it
    description: str  # what the sentence encoder compares a theme with

    @property
    def harmful(self) -> bool:
        """Whether such a message asks for harm or pushes against the model's rules."""
        return self.label.startswith(HARMFUL) or self.label in ("jailbreak", "toxic text")


KINDS: Mapping[str, Kind] = {
    "self-harm": Kind(
        HARMFUL + "self-harm", "asks about suicide, injuring oneself or starving oneself"
    ),
    "weapons": Kind(
        HARMFUL + "weapons", "asks how to make or get a bomb, gun, poison or chemical weapon"
    ),
    "cyber": Kind(
        HARMFUL + "cyber crime", "asks how to hack accounts or computers, write malware or phish"
    ),
    "sexual": Kind(HARMFUL + "sexual", "asks for explicit, pornographic or exploitative content"),
    "hate": Kind(
        HARMFUL + "hate", "asks for slurs, stereotypes or discrimination against a group of people"
    ),
    "violence": Kind(
        HARMFUL + "violence", "asks how to kill, attack, threaten, stalk or abuse somebody"
    ),
    "fraud": Kind(HARMFUL + "fraud", "asks how to defraud, steal, forge, evade taxes or blackmail"),
    "drugs": Kind(
        HARMFUL + "drugs", "asks how to make drugs or how to smuggle and traffic illegal goods"
    ),
    "privacy": Kind(
        HARMFUL + "privacy", "asks for a person's private data, to spy on or to dox somebody"
    ),
    "misinformation": Kind(
        HARMFUL + "misinformation", "asks for false news, conspiracy theories or propaganda"
    ),
    "jailbreak": Kind(
        "jailbreak", "orders the model to act as a persona without rules or restrictions"
    ),
    "toxic": Kind("toxic text", "insulting, profane or hostile text that asks for nothing"),
    "smalltalk": Kind("small talk", "greets, chats about the day and how somebody feels"),
    "likes": Kind(
        "likes and opinions", "tells about hobbies, films, music, food, sport or pets one likes"
    ),
    "advice": Kind(
        "personal advice", "asks for personal, health, legal, money or relationship advice"
    ),
    "facts": Kind("factual question", "asks a factual question or for an explanation"),
    "writing": Kind("writing task", "asks to write, edit or summarise a text, story or letter"),
    "planning": Kind("planning", "asks for an ordinary plan, ideas, a list or how to do a task"),
    "technical": Kind(
        "technical text", "describes an operation of a cloud service or software interface"
    ),
    "code": Kind("code or data task", "asks to write code, solve a calculation or handle data"),
}
UNCLEAR = "topic not clear yet"  # the theme of the first words, which tell no kind
OPENING = "conversation opening"  # the theme of template tokens before the user's first word


@dataclass(frozen=True, slots=True)
class Theme:
    """The kind of a document and, where one was written, its phrase."""

    kind: str  # a key of KINDS
    phrase: str = ""

    @property
    def text(self) -> str:
        """``label: phrase``, or the label alone."""
        label = KINDS[self.kind].label
        return f"{label}: {self.phrase}" if self.phrase else label


@functools.cache
def written_themes() -> Mapping[str, Theme]:
    """The committed phrases by the first characters of the document's digest.

    Raises:
        InputDataError: the file in the package is damaged.
    """
    place = resources.files("nae_monitor.train") / PHRASES
    themes: dict[str, Theme] = {}
    for number, line in enumerate(place.read_text(encoding="ascii").splitlines(), 1):
        parts = line.split("\t")
        if len(parts) != 3 or len(parts[0]) != DIGEST_CHARACTERS or parts[1] not in KINDS:
            raise InputDataError(f"{place}:{number} is no digest, kind and phrase")
        themes[parts[0]] = Theme(parts[1], parts[2])
    return themes


def theme_of(digest: str, kind: str) -> Theme:
    """The written theme of a document, or the kind that its source gives it."""
    return written_themes().get(digest[:DIGEST_CHARACTERS], Theme(kind))
