"""The verbalizer on a vLLM server (or any OpenAI-compatible one that takes prompt embeddings).

Start it with the full or merged verbalizer and ``--enable-prompt-embeds
--no-enable-prefix-caching``. Each prompt is one ``/v1/completions`` request whose
``prompt_embeds`` is a tensor [T, d] as ``torch.save`` writes it, base64-encoded; token ids are
never sent beside it. Source: vLLM documentation, "Prompt Embedding Inputs".
"""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import torch

from nae_monitor.decode.engines.http import JsonServer, in_parallel, pick
from nae_monitor.decode.prompts import CLOSE_TAG, Generation, PromptBatch, Sampling
from nae_monitor.errors import EngineError


class VllmEngine:
    """Generates over HTTP.

    Args:
        url: of the server, without ``/v1``; a fragment names the served model
            (``http://host:8000#my-av``), needed only where the server has several.
        timeout_s: deadline of one ``generate`` call, retries included.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        base_url, _, self._model = url.partition("#")
        self._server = JsonServer(base_url)
        self._timeout_s = timeout_s

    def generate(self, prompts: PromptBatch, sampling: Sampling) -> list[Generation]:
        """See :class:`nae_monitor.decode.engines.Engine`."""
        deadline_s = time.monotonic() + self._timeout_s

        def one(index: int) -> Generation:
            payload = self._payload(prompts.embeddings[index], sampling, index)
            answer = self._server.call("POST", "/v1/completions", payload, deadline_s=deadline_s)
            if answer is None:
                raise EngineError("the server has no /v1/completions")
            text = pick(answer, ("choices", 0, "text"), str)
            return Generation(text, pick(answer, ("usage", "completion_tokens"), int))

        return in_parallel(one, len(prompts))

    def abandon(self) -> bool:
        """See :class:`nae_monitor.decode.engines.Engine`: its deadline ends it, nothing else."""
        return False

    def _payload(self, embeddings: torch.Tensor, sampling: Sampling, index: int) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "prompt_embeds": encode_tensor(embeddings),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "stop": [CLOSE_TAG],
            "include_stop_str_in_output": True,
            "skip_special_tokens": True,
        }
        if self._model:
            payload["model"] = self._model
        if not sampling.is_greedy:
            payload["seed"] = sampling.seeds[index]
        return payload


def encode_tensor(tensor: torch.Tensor) -> str:
    """A tensor as vLLM reads it. The clone keeps the rest of a shared storage off the wire."""
    buffer = io.BytesIO()
    torch.save(tensor.detach().to("cpu", torch.float32).clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
