"""Streaming clients that all ask at once, and when their tokens came."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ASK_S = 600


@dataclass(frozen=True, slots=True)
class Volley:
    """What some clients at once were given.

    Attributes:
        tokens_per_s: of all clients together, from the first question to the last token.
        first_token_s: of each client [n].
        between_tokens_s: between two chunks of one client, of all clients.
    """

    tokens_per_s: float
    first_token_s: NDArray[np.float64]
    between_tokens_s: NDArray[np.float64]


def volley(port: int, prompts: Sequence[Sequence[int]], new_tokens: int) -> Volley:
    """Ask for ``new_tokens`` tokens behind each prompt of token ids, all at once.

    Raises:
        RuntimeError: a client was not given all of them.
    """
    arrivals: list[list[float]] = [[] for _ in prompts]
    failures: list[str] = []

    def ask(number: int) -> None:
        try:
            arrivals[number] = _ask(port, prompts[number], new_tokens)
        except (OSError, http.client.HTTPException, ValueError) as error:
            failures.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(prompts))]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"a client failed: {failures[0]}")
    taken_s = max(times[-1] for times in arrivals) - started_s
    return Volley(
        len(prompts) * new_tokens / taken_s,
        np.array([times[0] - started_s for times in arrivals]),
        np.concatenate([np.diff(times) for times in arrivals]),
    )


def _ask(port: int, prompt: Sequence[int], new_tokens: int) -> list[float]:
    """When each chunk of the answer came."""
    body = {
        "model": "smol", "prompt": list(prompt), "max_tokens": new_tokens, "temperature": 0,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ASK_S)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        times: list[float] = []
        given = 0
        for line in answer:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                if chunk.get("choices"):
                    times.append(time.perf_counter())
                elif chunk.get("usage"):
                    given = int(chunk["usage"]["completion_tokens"])
    finally:
        connection.close()
    if answer.status != 200 or given != new_tokens:
        raise ValueError(f"status {answer.status}, {given} of {new_tokens} tokens")
    return times
