"""What a direction stands for, in words: taken from the rules that the screen serves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nae_monitor.detect import RuleSet
from nae_monitor.detect.schema import Rule
from nae_monitor.detect.semantic import SemanticMatcher

# What ordinary conversations are about. A concept is set against these and not against its
# opposite, since contrasts of opposite stance cancel out what both speak of.
NEUTRAL = (
    "asks how to bake bread and what to eat",
    "greets and chats about the day",
    "asks for a plan for a holiday trip",
    "asks for help with a letter or an email",
    "describes an operation of a software interface",
    "asks a factual question about science or history",
    "tells about films, music and sport that one likes",
    "asks for advice on work, health or money",
)
# `at "token"; expects "…"; THEME; prompt "…` (or `reply "…`), as pairs of this project write.
_THEMED = re.compile(r'(at ".*?"; expects ".*?"; )(.*)(; (?:[a-z ]*reply|prompt) ".*)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Concept:
    """A name and the phrases that say it as an explanation would."""

    name: str
    phrases: tuple[str, ...]


def concepts_of(rules: RuleSet) -> list[Concept]:
    """One concept for each enabled rule that reads text: its semantic exemplars, or its title."""
    found = []
    for rule in rules.rules:
        if rule.enabled and _reads_text(rule):
            exemplars = tuple(
                exemplar
                for selection in rule.selections.values()
                if isinstance(selection.matcher, SemanticMatcher)
                for exemplar in selection.matcher.exemplars
            )
            found.append(Concept(rule.name, exemplars or (rule.title,)))
    return found


def _reads_text(rule: Rule) -> bool:
    fields = {getattr(selection, "field", None) for selection in rule.selections.values()}
    return "explanation" in fields


def themed(frames: Sequence[str], phrase: str) -> list[str]:
    """Explanations that differ from ``frames`` in their theme alone.

    An explanation without a place for a theme has the phrase put in front.
    """
    return [_with_theme(frame, phrase) for frame in frames]


def _with_theme(frame: str, phrase: str) -> str:
    match = _THEMED.fullmatch(frame)
    if match is None:
        return f"{phrase}. {frame}"
    return match[1] + phrase + match[3]
