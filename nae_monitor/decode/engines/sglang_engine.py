"""The verbalizer on an SGLang server, by its native ``/generate`` with ``input_embeds``.

Start it with ``--disable-radix-cache``: that cache is keyed on token ids, which these requests
do not have, so different activations would share one entry. A server that says the cache is on
is refused. Written from SGLang's documentation and tested against a double.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch

from nae_monitor.decode.engines.http import JsonServer, in_parallel, pick
from nae_monitor.decode.prompts import CLOSE_TAG, Generation, PromptBatch, Sampling
from nae_monitor.errors import EngineError

log = logging.getLogger(__name__)
INFO_PATHS = ("/server_info", "/get_server_info")  # newer, older


class SglangEngine:
    """Generates over HTTP.

    Args:
        url: of the server.
        timeout_s: deadline of one ``generate`` call, retries included.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._server = JsonServer(url)
        self._timeout_s = timeout_s
        self._is_checked = False

    def generate(self, prompts: PromptBatch, sampling: Sampling) -> list[Generation]:
        """See :class:`nae_monitor.decode.engines.Engine`."""
        deadline_s = time.monotonic() + self._timeout_s
        self._refuse_radix_cache(deadline_s)

        def one(index: int) -> Generation:
            payload = _payload(prompts.embeddings[index], sampling, index)
            answer = self._server.call("POST", "/generate", payload, deadline_s=deadline_s)
            if answer is None:
                raise EngineError("the server has no /generate")
            first = answer[0] if isinstance(answer, list) and answer else answer
            tokens = pick(first, ("meta_info", "completion_tokens"), int)
            return Generation(pick(first, ("text",), str), tokens)

        return in_parallel(one, len(prompts))

    def abandon(self) -> bool:
        """See :class:`nae_monitor.decode.engines.Engine`: its deadline ends it, nothing else."""
        return False

    def _refuse_radix_cache(self, deadline_s: float) -> None:
        if self._is_checked:
            return
        found = (self._server.call("GET", p, None, deadline_s=deadline_s) for p in INFO_PATHS)
        info = next((i for i in found if i is not None), None)
        disabled = info.get("disable_radix_cache") if isinstance(info, Mapping) else None
        if disabled is False:
            raise EngineError("the SGLang server's radix cache is on; use --disable-radix-cache")
        if disabled is None:
            log.warning("the SGLang server does not say whether its radix cache is off")
        self._is_checked = True


def _payload(embeddings: torch.Tensor, sampling: Sampling, index: int) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "temperature": sampling.temperature,
        "max_new_tokens": sampling.max_new_tokens,
        "stop": [CLOSE_TAG],
        "no_stop_trim": True,
        "skip_special_tokens": True,
    }
    if not sampling.is_greedy:
        parameters["sampling_seed"] = sampling.seeds[index]
    return {"input_embeds": embeddings.float().tolist(), "sampling_params": parameters}
