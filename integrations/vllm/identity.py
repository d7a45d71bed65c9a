"""What of a request of vLLM the stages want to know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nae_monitor.integrations.engines.identity import MAX_CHARS, TRUSTED, request_under
from nae_monitor.integrations.engines.tracker import Begun
from nae_monitor.records import Request

CLIENT = {"session": "nae_session", "tenant": "nae_tenant", "traceparent": "nae_traceparent"}
_ENGINE_ID = re.compile(
    r"^(?:\d+_)?(?:(?:chatcmpl|resp)-(?P<chat>.+)|cmpl-(?P<completion>.+)-\d+)-[0-9a-f]{8}$"
)


def group_of(engine_id: str) -> str:
    """The caller's id (``X-Request-Id``) in an id of the engine; the whole id if none is in it.

    The server calls a request ``chatcmpl-ID-8hex`` (``cmpl-ID-INDEX-8hex`` for completions), and
    ``N_…`` where one request asks for several answers.
    """
    match = _ENGINE_ID.match(engine_id)
    return (match["chat"] or match["completion"]) if match else engine_id


def read_identity(extra_args: Mapping[str, Any] | None) -> Mapping[str, str]:
    """``session``, ``tenant`` and ``traceparent``: from headers, else as the client says."""
    given = extra_args or {}
    trusted = given.get(TRUSTED)
    found = {name: given[key] for name, key in CLIENT.items() if key in given}
    found.update(trusted if isinstance(trusted, Mapping) else {})
    return {name: value[:MAX_CHARS] for name, value in found.items() if isinstance(value, str)}


def request_of(engine_id: str, extra_args: Mapping[str, Any] | None, model: str) -> Request:
    """The request as the stages know it."""
    identity, group_id = read_identity(extra_args), group_of(engine_id)
    request: Request = request_under(identity, engine_id, group_id, model)
    return request


def begun(new: Any, model: str) -> Begun:
    """What the tracker wants to know of a ``NewRequestData``."""
    params, prompt = new.sampling_params, new.prompt_token_ids
    return Begun(
        engine_id=new.req_id,
        request=request_of(new.req_id, getattr(params, "extra_args", None), model),
        prompt_token_ids=tuple(prompt or ()),
        prompt_tokens=new.prompt_len,
        stop_token_ids=stop_tokens(params),
        computed_tokens=new.num_computed_tokens,
        lost="no_token_ids" if prompt is None else None,
    )


def stop_tokens(params: Any) -> frozenset[int]:
    """Tokens that end an answer under vLLM's ``SamplingParams``; none for a pooling request."""
    if params is None:
        return frozenset()
    tokens = set(getattr(params, "stop_token_ids", None) or ())
    if not getattr(params, "ignore_eos", False):
        tokens.update(getattr(params, "all_stop_token_ids", None) or ())
        eos = getattr(params, "eos_token_id", None)
        tokens.update(() if eos is None else (eos,))
    return frozenset(tokens)
