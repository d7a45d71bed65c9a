"""The one way a transcript is cut at a token, shared by live judging and replay."""

from __future__ import annotations

from collections.abc import Sequence

from nae_monitor.records import Transcript


def transcript_at(
    prompt_text: str | None,
    output_tokens: Sequence[str] | None,
    prompt_tokens: int,
    position: int,
) -> Transcript:
    """What had been said when the token at ``position`` was processed.

    Args:
        prompt_text: the whole prompt; None where it is unknown or withheld.
        output_tokens: text of each completion token in order, at least up to ``position``;
            None where withheld.
        prompt_tokens: length of the prompt in tokens, so ``output_tokens[0]`` stands at it.
        position: tokens from 0, prompt and completion in one row.

    Returns:
        The prompt, and the completion up to and including ``position``: "" inside the prompt,
        None (unknown) where the completion tokens are withheld or do not reach ``position``.
    """
    said_tokens = max(0, position - prompt_tokens + 1)
    if said_tokens == 0:
        return Transcript(prompt_text, "")
    if output_tokens is None or len(output_tokens) < said_tokens:
        return Transcript(prompt_text, None)
    return Transcript(prompt_text, "".join(output_tokens[:said_tokens]))
