"""What a verbalizer wrote, taken apart: the one place that reads an explanation's form back."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nae_monitor.train.targets import Target

# Each part is there only behind the one before it: a decode may end early.
_FORM = re.compile(
    r'at "(?P<last_token>[^"]*)"; expects "'
    r'(?:(?P<following>[^"]*)"; (?P<theme>.*?)'
    r'(?:; (?P<speaker>(?:\w+ )?(?:prompt|reply)) "(?P<last>.*))?$)?',
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that a text names, in the words it uses; empty where it ended before one."""

    last_token: str
    following: str = ""
    theme: str = ""
    speaker: str = ""
    last: str = ""
    theme_start: int = 0  # in characters of the text


def parts_of(text: str) -> Parts | None:
    """The parts of ``text``; None where it does not even name the token it stands at."""
    found = _FORM.match(text)
    if found is None:
        return None
    return Parts(
        **{name: value or "" for name, value in found.groupdict().items()},
        theme_start=max(found.start("theme"), 0),
    )


def as_target(text: str) -> Target | None:
    """The parts of ``text`` as a target; None where they would not make the same text again.

    Texts out of form are not learnt from: that is how a verbalizer drifts away from what a
    reader, and a rule, can take apart.
    """
    found = parts_of(text)
    if found is None or not (found.theme and found.speaker) or text.count('"') != 5:
        return None
    target = Target(
        kind="",
        theme=found.theme,
        speaker=found.speaker,
        last=found.last,
        following=found.following,
        last_token=found.last_token,
    )
    return target if target.text == text else None
