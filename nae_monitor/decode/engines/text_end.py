"""When a text is over, and what it then says."""

from __future__ import annotations

from typing import Any

from nae_monitor.decode.prompts import CLOSE_TAG, Generation

# A closing tag that has begun so is no other: no name of another tag begins with "explan".
# What comes behind is known, and two tokens of forty are saved by taking it as written.
SURE = CLOSE_TAG[:8]
_TAIL_TOKENS = 2 * len(CLOSE_TAG)  # no tokenizer spells the closing tag in more


class TextEnd:
    """Reads ids of one model.

    Args:
        model: whose generation configuration names ids that end a text.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = _stop_ids(model, tokenizer)
        self._closing_ids = _closing_ids(tokenizer)

    def is_over(self, ids: list[int], max_tokens: int) -> bool:
        """Whether no token comes behind these, which are at most ``max_tokens``."""
        return len(ids) >= max_tokens or self.reached(ids)

    def generation(self, ids: list[int]) -> Generation:
        """What these ids come to."""
        return Generation(self.text(ids), len(ids))

    def reached(self, ids: list[int]) -> bool:
        """Whether the model ends its text here, or its closing tag is there or certain."""
        if ids[-1] in self._stop_ids:
            return True
        return ids[-1] in self._closing_ids and _closes(self._decoded(ids[-_TAIL_TOKENS:]))

    def text(self, ids: list[int]) -> str:
        """What ids say, tags included; a closing tag that was certain is whole."""
        said = self._decoded(ids[:-1] if ids[-1] in self._stop_ids else ids)
        if CLOSE_TAG not in said and _closes(said):
            return said[: said.rindex(SURE)] + CLOSE_TAG
        return said

    def _decoded(self, ids: list[int]) -> str:
        said: str = self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return said


def _closes(said: str) -> bool:
    begun = said.rfind(SURE)
    return CLOSE_TAG in said or (begun >= 0 and CLOSE_TAG.startswith(said[begun:]))


def _closing_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of every token with which a closing tag may become certain, or may by its name."""
    inside = {CLOSE_TAG[i:j] for j in range(len(SURE), len(CLOSE_TAG) + 1) for i in range(j)}
    return frozenset(
        i
        for token, i in tokenizer.get_vocab().items()
        if token in inside or SURE in token or CLOSE_TAG[-1] in token  # ">" ends "<0x65>", a byte
    )


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-sequence ids of the tokenizer and of the generation configuration."""
    found: set[int] = set()
    for value in (tokenizer.eos_token_id, model.generation_config.eos_token_id):
        if isinstance(value, int):
            found.add(value)
        elif value is not None:
            found.update(int(v) for v in value)
    return frozenset(found)
