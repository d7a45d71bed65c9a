"""The text an activation should be verbalised as.

``at "token"; expects "next words"; after "last words"; theme``: every part is determined by the
vector, so that a verbalizer which reads beats one that guesses, and the parts come in the order
of how plainly a residual stream tells them. Written the other way round, one wrong early word
pulls everything behind it along, the token at the position included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LAST_TOKENS = 7
NEXT_TOKENS = 4
SYSTEM_THEME = "conversation opening"
OTHER_SPECIAL = "[special]"
_WORDS = {"<|im_start|>": "[start]", "<|im_end|>": "[end]", "<|endoftext|>": "[end]"}
# The explanation's own tags, inside it, would end it early.
_TAGS = {"<explanation>": "[explanation]", "</explanation>": "[/explanation]"}
_OTHER_LINE_BREAKS = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_REFUSAL = re.compile(
    r"\b(?:i'?m sorry|i am sorry|i can(?:'|no)t|i cannot|i'?m (?:unable|not able)|as an ai\b|"
    r"i don'?t have the (?:capability|ability)|it'?s not appropriate)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of one explanation."""

    theme: str
    last: str  # the words before the position
    following: str  # what the target would say next
    last_token: str  # the piece at the position itself

    @property
    def text(self) -> str:
        """The explanation as the verbalizer should write it, without its tags."""
        return (
            f'at "{self.last_token}"; expects "{self.following}"; after "{self.last}"; {self.theme}'
        )


def special_words(tokenizer: Any) -> dict[int, tuple[str, str]]:
    """Each special token's id -> (its text, the word in brackets that stands for it)."""
    added = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return {i: (t, _WORDS.get(t, OTHER_SPECIAL)) for i, t in (added | named).items()}


def readable(tokenizer: Any, words: Mapping[int, tuple[str, str]], token_ids: Sequence[int]) -> str:
    """Decoded tokens on one line, without double quotes, special tokens or explanation tags.

    Args:
        tokenizer: the target's.
        words: what :func:`special_words` gave for it.
        token_ids: any of its ids; half a character at either end is left out.
    """
    text, run = "", list[int]()
    for token_id in token_ids:
        if token_id in words:
            text += _plain(tokenizer, words, run) + words[token_id][1]
            run = []
        else:
            run.append(int(token_id))
    return text + _plain(tokenizer, words, run)


def _plain(tokenizer: Any, words: Mapping[int, tuple[str, str]], run: list[int]) -> str:
    text = str(tokenizer.decode(run)).replace("\ufffd", "").replace('"', "'")
    text = _OTHER_LINE_BREAKS.sub(" ", text.replace("\n", "\\n"))
    # Ordinary tokens can spell a special one, which would become one when encoded again.
    for spelled, word in (*words.values(), *_TAGS.items()):
        text = text.replace(spelled, word)
    return text


def make_target(
    tokenizer: Any,
    words: Mapping[int, tuple[str, str]],
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
        last=readable(tokenizer, words, last_ids[-LAST_TOKENS - 1 : -1]).strip(),
        following=readable(tokenizer, words, next_ids[:NEXT_TOKENS]),
        last_token=readable(tokenizer, words, last_ids[-1:]),
    )
