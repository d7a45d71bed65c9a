"""A verbalizer's own text as a training target, where it keeps to the form of one."""

from __future__ import annotations

import re

from nae_monitor.train.targets import Target

_FORM = re.compile(
    r'at "(?P<last_token>[^"]*)"; expects "(?P<following>[^"]*)"; (?P<theme>[^"]+); '
    r'(?P<speaker>[^";]+) "(?P<last>[^"]*)'
)


def as_target(text: str) -> Target | None:
    """The parts of ``text``; None where they would not make the same text again.

    Texts out of form are not learnt from: that is how a verbalizer drifts away from what a
    reader, and a rule, can take apart.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    target = Target(kind="", **found.groupdict())
    return target if target.text == text else None
