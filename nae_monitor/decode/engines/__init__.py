"""Where the verbalizer's language model runs: in this process, or on a vLLM or SGLang server."""

from __future__ import annotations

from typing import Protocol

from nae_monitor.decode.prompts import Generation, PromptBatch, Sampling


class Engine(Protocol):
    """Continues prompts given as embeddings."""

    def generate(self, prompts: PromptBatch, sampling: Sampling) -> list[Generation]:
        """Write one text a prompt, in order; blocks until all are done.

        Every text ends at ``</explanation>``, at an end-of-sequence token or after
        ``max_new_tokens``, whichever comes first.

        Raises:
            EngineError: a remote engine did not answer properly within its deadline. Nothing is
                returned for the batch then.
            AbandonedError: see :meth:`abandon`.
        """
        ...

    def abandon(self) -> bool:
        """Let a :meth:`generate` that is under way raise AbandonedError soon; from any thread.

        Returns:
            False where it cannot be given up: it waits for a server.
        """
        ...
