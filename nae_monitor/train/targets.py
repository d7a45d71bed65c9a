"""The text an activation should be verbalised as: theme; "last words"; expects "next words".

Every part is determined by the vector, so that a verbalizer which reads beats one that guesses
(recipe: a target that names the last token and the expected continuation).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LAST_TOKENS = 8
NEXT_TOKENS = 4
SYSTEM_THEME = "conversation opening"
_REFUSAL = re.compile(
    r"\b(?:i'?m sorry|i am sorry|i can(?:'|no)t|i cannot|i'?m (?:unable|not able)|as an ai\b|"
    r"i don'?t have the (?:capability|ability)|it'?s not appropriate)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of one explanation."""

    theme: str
    last: str
    following: str
    last_token: str = ""  # the piece at the position itself, as it stands at the end of ``last``

    @property
    def text(self) -> str:
        """The explanation as the verbalizer should write it, without its tags."""
        return f'{self.theme}; "{self.last}"; expects "{self.following}"'


def readable(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Decoded tokens on one line; template tokens become words in brackets, quotes single."""
    parts = [_SPECIAL.get(tokenizer.convert_ids_to_tokens(int(i))) for i in token_ids]
    text: str = ""
    run: list[int] = []
    for token_id, special in zip(token_ids, parts, strict=True):
        if special is None:
            run.append(int(token_id))
            continue
        text += str(tokenizer.decode(run)) + special
        run = []
    text += str(tokenizer.decode(run))
    return text.replace("\n", "\\n").replace('"', "'").replace("\ufffd", "")


_SPECIAL = {"<|im_start|>": "[start]", "<|im_end|>": "[end]", "<|endoftext|>": "[end]"}


def make_target(
    tokenizer: Any,
    *,
    theme: str,
    last_ids: Sequence[int],
    next_ids: Sequence[int],
    reply_ids: Sequence[int],
) -> Target:
    """Build the target of one row; ``reply_ids`` is the reply so far, empty in the prompt."""
    if reply_ids:
        refuses = _REFUSAL.search(tokenizer.decode(list(reply_ids)))
        theme += ", reply refuses" if refuses else ", reply"
    return Target(
        theme=theme,
        last=readable(tokenizer, last_ids[-LAST_TOKENS:]).strip(),
        following=readable(tokenizer, next_ids[:NEXT_TOKENS]),
        last_token=readable(tokenizer, last_ids[-1:]).strip(),
    )
