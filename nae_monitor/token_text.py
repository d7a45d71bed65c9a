"""Text of single tokens, such that joining them gives the text of the whole.

The text of a token depends on the tokens up to it alone, never on what follows. So a judgement
made while a sequence grows and its replay over the whole sequence see the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no character
SPLIT_TOKENS = 8  # two characters of four tokens; a longer window is cut where that is safe
CONTEXT_TOKENS = 12  # enough for any one character and for the token before it


class TokenText:
    """Decodes the ids of one tokenizer; special tokens are kept. For one thread at a time."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a whole sequence."""
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def at(self, token_ids: Sequence[int], index: int) -> str:
        """The text of ``token_ids[index]``, worked out from the few tokens before it."""
        stream = TextStream(self)
        return stream.extend(token_ids[max(0, index - CONTEXT_TOKENS) : index + 1])[-1]


class TextStream:
    """The texts of a growing sequence, token by token.

    A character that several tokens make up stands at the last of them; the others are "".
    Replacement characters at the end are held back until it is clear that no character becomes
    of them, so a sequence that ends inside a character lacks just these.

    Args:
        text: the decoder.
        before: tokens in front of the first, for their context.
    """

    def __init__(self, text: TokenText, before: Sequence[int] = ()) -> None:
        self._text = text
        self._ids: list[int] = []  # the window: context, then tokens that wait for an ending
        self._context = 0  # tokens of the window that were handed out
        self._said = 0  # characters of the window's text that were handed out
        for token_id in before[-CONTEXT_TOKENS:]:
            self._next(token_id)

    def extend(self, token_ids: Sequence[int]) -> list[str]:
        """The texts of the tokens that come next."""
        return [self._next(token_id) for token_id in token_ids]

    def _next(self, token_id: int) -> str:
        self._ids.append(token_id)
        whole = self._text.decode(self._ids)
        # All of them: with byte fallback one cut character spoils the whole run of bytes before.
        certain = len(whole.rstrip(REPLACEMENT))
        if self._said < certain == len(whole):
            new = whole[self._said :]
            # What was said now is the next context: it begins and ends with whole characters,
            # and some decoders drop a space at the very beginning.
            del self._ids[: self._context]
            self._context = len(self._ids)
            self._said = len(self._text.decode(self._ids))
            return new
        split = self._split(whole) if len(self._ids) > SPLIT_TOKENS else 0
        new = whole[self._said : max(certain, split)]
        self._said = max(self._said, certain, split) - split
        return new

    def _split(self, whole: str) -> int:
        """Keep just the last token if the text divides there; the length of what went, or 0."""
        last = len(self._ids) - 1
        before = self._text.decode(self._ids[:last])
        if before + self._text.decode(self._ids[last:]) != whole:
            return 0
        del self._ids[:last]
        self._context = 0
        return len(before)
