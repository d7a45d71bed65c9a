"""Explanations as a verbalizer wrote them, taken for targets."""

from __future__ import annotations

from nae_monitor.decode.form import parts_of
from nae_monitor.train.targets import Target


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
