"""The text an activation should be verbalised as.

``at "token"; expects "one|another|a third"; kind: theme phrase; prompt "last words up to the
token``: the token and the likeliest next ones come first because a residual stream tells them most
plainly; written the other way round, one wrong early word pulls everything behind it along.
Several alternatives for the next token say more of the vector than one continuation of several
tokens does, whose later ones the vector hardly knows. The last words come last and their
quotation is left open, so that a reconstructor which reads the text from its end stands where the
target stood: behind the same words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nae_monitor.decode.form import BETWEEN
from nae_monitor.train.themes import OPENING, UNCLEAR, Theme

LAST_TOKENS = 5
EXPECTED_TOKENS = 3  # alternatives for the next one
CLEAR_TOKENS = 5  # of the user's message: before so many, nobody can tell what it is about
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
_HEDGE = re.compile(
    r"\b(?:it'?s important to (?:note|remember)|however, (?:it|i)|please (?:consult|note)|"
    r"i (?:would|strongly) (?:advise|encourage)|seek (?:help|professional))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of one explanation."""

    kind: str  # a key of KINDS; empty where no reader could tell it yet
    theme: str
    speaker: str  # whose words the last ones are, and how a reply behaves
    last: str  # the words up to the position, its own token included
    following: str  # the likeliest next tokens, likeliest first
    last_token: str  # the piece at the position itself

    @property
    def head(self) -> str:
        """Everything in front of the last words."""
        return f'at "{self.last_token}"; expects "{self.following}"; {self.theme}; {self.speaker} "'

    @property
    def text(self) -> str:
        """The explanation as the verbalizer should write it, without its tags."""
        return (self.head + self.last).rstrip()


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
    theme: Theme,
    user_tokens: int,
    last_ids: Sequence[int],
    top_ids: Sequence[int],
    reply_ids: Sequence[int],
) -> Target:
    """Build the target of one row.

    Args:
        tokenizer: the target's.
        words: what :func:`special_words` gave for it.
        theme: of the document.
        user_tokens: of the user's message and what follows, up to the position; not above 0 in
            the template before it.
        last_ids: the tokens up to the position.
        top_ids: what the target holds likeliest to come next, likeliest first.
        reply_ids: the reply up to the position, empty in the prompt.
    """
    clear = bool(reply_ids) or user_tokens >= CLEAR_TOKENS
    return Target(
        kind=theme.kind if clear else "",
        theme=theme.text if clear else UNCLEAR if user_tokens > 0 else OPENING,
        speaker=_speaker(tokenizer.decode(list(reply_ids))) if reply_ids else "prompt",
        last=readable(tokenizer, words, last_ids[-LAST_TOKENS:]).strip(),
        following=BETWEEN.join(
            readable(tokenizer, words, [token]).replace(BETWEEN, "/")
            for token in top_ids[:EXPECTED_TOKENS]
        ),
        last_token=readable(tokenizer, words, last_ids[-1:]),
    )


def _speaker(reply: str) -> str:
    """``reply`` and how it behaves so far; a reply that may still turn either way is only that."""
    if _REFUSAL.search(reply):
        return "refusing reply"
    return "hedging reply" if _HEDGE.search(reply) else "reply"
