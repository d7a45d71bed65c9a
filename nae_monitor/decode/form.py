"""What a verbalizer wrote, taken apart: the one place that reads an explanation's form back.

The form is that of pairs trained with this package (see :mod:`nae_monitor.train.targets`). Texts
of other pairs have no parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

BETWEEN = "|"  # of the alternatives for the next token
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

    @property
    def label(self) -> str:
        """The kind that the theme names, without its phrase."""
        return self.theme.partition(":")[0].strip()


def parts_of(text: str) -> Parts | None:
    """The parts of ``text``; None where it does not even name the token it stands at."""
    found = _FORM.match(text)
    if found is None:
        return None
    return Parts(
        **{name: value or "" for name, value in found.groupdict().items()},
        theme_start=max(found.start("theme"), 0),
    )
