from __future__ import annotations

import contextvars
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture_oracle import Recorder, check_rows, left_padded
from opentelemetry.sdk.trace import TracerProvider
from transformers import DynamicCache

from nae_monitor.capture import TransformersTap, current_context, request_scope
from nae_monitor.records import TraceRef

Build = Callable[..., TransformersTap]
IDS = torch.tensor([[5, 6, 7, 8]])
TWO: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False}


def _names(prompts: int, copies: int) -> list[str]:
    return [r.request_id for r in current_context().requests(prompts, copies, "m")]


def test_one_id_names_one_sequence() -> None:
    with request_scope("r"):
        assert _names(1, 1) == ["r"]


def test_one_id_numbers_a_batch() -> None:
    with request_scope("r"):
        assert _names(2, 2) == ["r#0", "r#1", "r#2", "r#3"]


def test_several_ids_name_the_prompts() -> None:
    with request_scope(["a", "b"]):
        assert _names(2, 1) == ["a", "b"]
        assert _names(2, 2) == ["a/2#0", "a/2#1", "b/2#0", "b/2#1"]


def test_a_further_turn_in_a_scope_gets_a_number() -> None:
    with request_scope("r"):
        assert [_names(1, 1), _names(1, 1), _names(2, 1)] == [["r"], ["r/2"], ["r/3#0", "r/3#1"]]


def test_the_group_is_the_callers_id() -> None:
    with request_scope("r") as context:
        context.requests(1, 1, "m")
        assert {r.group_id for r in context.requests(3, 1, "m")} == {"r"}
    with request_scope(["a", "b"]) as context:
        assert [r.group_id for r in context.requests(2, 1, "m")] == ["a", "b"]


def test_without_an_id_names_are_fresh() -> None:
    outside = {_names(1, 1)[0] for _ in range(3)}
    with request_scope(tenant="acme") as context:
        inside = _names(1, 1)
    assert len(outside) == 3
    assert all(uuid.UUID(name).hex == name for name in outside)
    assert inside == list(context.request_ids)


def test_scopes_nest_and_end() -> None:
    with request_scope("outer"):
        with pytest.raises(KeyError), request_scope("inner"):
            raise KeyError
        assert current_context().request_ids == ("outer",)
    assert current_context().request_ids != ("outer",)


def test_a_thread_has_its_own_scope_unless_it_is_given_one() -> None:
    seen: list[tuple[str, ...]] = []

    def look() -> None:
        seen.append(current_context().request_ids)

    with request_scope("r"):
        copied = contextvars.copy_context()
        for target in (look, lambda: copied.run(look)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert seen[0] != ("r",)
    assert seen[1] == ("r",)


def test_requests_carry_everything_the_scope_says(
    llama_model: Any, tap: Build, recorder: Recorder
) -> None:
    trace = TraceRef(1, 2, 1)
    attributes = {"route": "/chat"}
    with tap(llama_model), request_scope("r", "s", "acme", trace, attributes):
        attributes["route"] = "changed later"
        llama_model.generate(IDS, **TWO)
    request = recorder.requests["r"]
    assert (request.session_id, request.tenant, request.trace) == ("s", "acme", trace)
    assert dict(request.attributes) == {"route": "/chat"}
    assert request.model == "tiny"
    assert request.started_unix_ns > 0


def test_the_current_span_is_the_requests_trace(
    llama_model: Any, tap: Build, recorder: Recorder
) -> None:
    tracer = TracerProvider().get_tracer("test")
    with tap(llama_model):
        with request_scope("with"), tracer.start_as_current_span("chat") as span:
            llama_model.generate(IDS, **TWO)
        with request_scope("without"):
            llama_model.generate(IDS, **TWO)
    context = span.get_span_context()
    assert recorder.requests["with"].trace == TraceRef(
        context.trace_id, context.span_id, int(context.trace_flags)
    )
    assert recorder.requests["without"].trace is None


def test_a_second_generate_without_the_cache_is_another_request(
    llama_model: Any, tap: Build, recorder: Recorder
) -> None:
    with tap(llama_model), request_scope("r"):
        llama_model.generate(IDS, **TWO)
        llama_model.generate(IDS, **TWO)
    assert recorder.finished == ["r", "r/2"]
    check_rows(llama_model, recorder)


def test_the_cache_of_another_conversation_does_not_continue_this_one(
    llama_model: Any, tap: Build, recorder: Recorder
) -> None:
    other = torch.tensor([[9, 10, 11, 12, 13]])
    cache = DynamicCache(config=llama_model.config)
    with torch.no_grad():
        llama_model(other[:, :3], past_key_values=cache)
    with tap(llama_model), request_scope("r"):
        llama_model.generate(IDS, **TWO)
        llama_model.generate(other, past_key_values=cache, **TWO)
    assert list(recorder.prompts) == ["r", "r/2"]
    check_rows(llama_model, recorder, every=False)


def test_events_come_in_the_order_of_the_contract(
    llama_model: Any, tap: Build, recorder: Recorder
) -> None:
    with tap(llama_model, gather_steps=1), request_scope("r"):
        llama_model.generate(
            **left_padded([[5, 6]]), max_new_tokens=3, do_sample=False, eos_token_id=None
        )
    kinds = [kind for kind, _ in recorder.events]
    assert kinds == ["started", "rows", "tokens", "rows", "tokens", "rows", "tokens", "finished"]
