"""Text of single tokens, such that joining them gives the text of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WINDOW_TOKENS = 6  # enough context for byte-level pieces of one character


class TokenText:
    """Decodes tokens one at a time with a little context before each.

    A character that several tokens make up stands at its last token; the others are "".
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def extend(self, token_ids: Sequence[int], texts: list[str]) -> None:
        """Append to ``texts`` the text of ``token_ids[len(texts):]``."""
        for i in range(len(texts), len(token_ids)):
            start = max(0, i - WINDOW_TOKENS)
            # Begin at a token that opened a character, or a cut one would decode to U+FFFD.
            while start > 0 and start < i and texts[start - 1] == "" and i - start < 32:
                start -= 1
            before = self._decode(token_ids[start:i])
            whole = self._decode(token_ids[start : i + 1])
            if whole.endswith("\ufffd"):
                texts.append("")
                continue
            texts.append(whole[len(before.rstrip("\ufffd")) :])

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text
