"""What a tap tells, and whom."""

from __future__ import annotations

from typing import Protocol

from nae_monitor.records import Request, RowBatch


class CaptureListener(Protocol):
    """Receives what a tap captures, on the thread that generates.

    Order per request: ``request_started``, then ``tokens`` and ``rows`` in any interleaving with
    positions never falling, then ``request_finished``, which comes however the generation ends.
    Several threads may generate at once, so calls for different requests interleave. No method may
    block or wait for the device: the host's generation waits for it. An exception is swallowed and
    counted; after five in a row the tap goes quiet (``request_finished`` still comes). If
    ``request_started`` fails, nothing but ``request_finished`` follows for its batch.
    """

    def request_started(self, request: Request, prompt_token_ids: tuple[int, ...]) -> None:
        """A sequence begins; padding is left out of its prompt.

        Called again with a known ``request_id`` where a further turn continues the cache: the
        prompt is then everything up to the new completion, and replaces what was known. Where a
        cache was filled out of sight its tokens are unknown: the prompt lacks them, positions
        do not.
        """

    def rows(self, batch: RowBatch) -> None:
        """Rows of one forward pass whose phase and position the settings ask for; never empty."""

    def tokens(self, request_id: str, token_ids: tuple[int, ...]) -> None:
        """New completion tokens, in order, up to the last one sampled; never padding."""

    def request_finished(self, request_id: str) -> None:
        """The generation ended: complete, by an exception, or interrupted."""


class Stopping(Protocol):
    """Says which sequences must end. Called on the generating thread, after each sampled token."""

    def stops(self, request_id: str, length_tokens: int, generated_tokens: int) -> bool:
        """Whether the sequence is to end now, after its token ``length_tokens - 1``.

        Args:
            request_id: of the sequence.
            length_tokens: prompt and completion, the token sampled just now included.
            generated_tokens: of those, the completion's.
        """
        ...

    def stopped(self, request_id: str, length_tokens: int, generated_tokens: int) -> None:
        """The sequence was ended as :meth:`stops` asked."""
        ...
