"""What of SGLang's requests and batches the stages want to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nae_monitor.errors import UnsupportedError
from nae_monitor.integrations.engines.identity import MAX_CHARS, TRUSTED, request_under
from nae_monitor.integrations.engines.passes import Part
from nae_monitor.integrations.engines.tracker import Begun


def begun(request: Any, model: str) -> Begun:
    """What the tracker wants to know of a ``Req``."""
    prompt = tuple(int(token) for token in request.origin_input_ids)
    identity = read_identity(request)
    return Begun(
        engine_id=request.rid,
        request=request_under(identity, request.rid, request.rid, model),
        prompt_token_ids=prompt,
        prompt_tokens=len(prompt),
        stop_token_ids=stop_tokens(request),
        lost=_lost(request),
    )


def read_identity(request: Any) -> Mapping[str, str]:
    """``session``, ``tenant`` and ``traceparent`` of the headers; else SGLang's ``session_id``."""
    found: dict[str, Any] = {"session": request.session_id}
    custom = request.sampling_params.custom_params
    trusted = custom.get(TRUSTED) if isinstance(custom, Mapping) else None
    found.update(trusted if isinstance(trusted, Mapping) else {})
    return {name: value[:MAX_CHARS] for name, value in found.items() if isinstance(value, str)}


def stop_tokens(request: Any) -> frozenset[int]:
    """Tokens that end the answer, as ``Req`` looks at them."""
    params, tokenizer = request.sampling_params, request.tokenizer
    if params.ignore_eos:
        return frozenset()
    tokens = set(params.stop_token_ids or ()) | set(request.eos_token_ids or ())
    if tokenizer is not None:
        tokens.update(getattr(tokenizer, "additional_stop_token_ids", None) or ())
        tokens.add(tokenizer.eos_token_id)
    return frozenset(int(token) for token in tokens if token is not None)


def parts_of(batch: Any) -> tuple[Part, ...]:
    """Whose rows the pass of a ``ScheduleBatch`` computes, in their order.

    Call it while the pass runs or just after: under the overlap schedule lengths are settled just
    before.

    Raises:
        UnsupportedError: the batch is of no kind that is known, or its lengths are on the device.
    """
    mode = batch.forward_mode
    if batch.seq_lens_cpu is None or not (mode.is_decode() or mode.is_extend()):
        raise UnsupportedError(f"a pass of mode {mode!r} without lengths cannot be mapped")
    ends = [int(end) for end in batch.seq_lens_cpu.tolist()]
    counts = [1] * len(batch.reqs) if mode.is_decode() else list(batch.extend_lens)
    parts, offset = [], 0
    for request, end, count in zip(batch.reqs, ends, counts, strict=False):  # beams come behind
        parts.append(Part(request.rid, end - count, count, offset))
        offset += count
    return tuple(parts)


def _lost(request: Any) -> str | None:
    """Why rows of a request cannot be told."""
    if request.input_embeds is not None or request.multimodal_inputs is not None:
        return "no_token_ids"
    return "beam_search" if getattr(request, "beam_group", None) is not None else None
