"""From the double's passes to rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sglang_fakes as sgl
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sglang_watch import Listener, configuration, watch

from nae_monitor.integrations.engines.identity import bounded
from nae_monitor.testing import tap_contract

LOOPS = [
    {"overlap": False},
    {"overlap": True},
    {"overlap": True, "chunk": 3},
    {"overlap": True, "chunk": 3, "mixed": True},
]


class Adapter:
    """As the contract drives it: a fresh engine for each run, of the same weights."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, loop: dict[str, Any]) -> None:
        self._monkeypatch, self._path, self._loop = monkeypatch, path, loop
        self._double = sgl.install(monkeypatch)

    def attach(self, listener: Any) -> None:
        self._double = watch(self._monkeypatch, self._path, listener)

    def detach(self) -> None:
        self._double = sgl.install(self._monkeypatch)

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        engine = self._double.Scheduler(**self._loop)
        requests = [sgl.Req(f"r{n}", prompt) for n, prompt in enumerate(prompts)]
        engine.add(*requests)
        engine.run_event_loop()
        return [list(request.output_ids) for request in requests]

    def hidden_states(self, token_ids: Sequence[int]) -> torch.Tensor:
        return sgl.hidden_states(sgl.Model(), token_ids)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_the_adapter_keeps_the_contract_of_taps(
    loop: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert tap_contract(Adapter(monkeypatch, configuration(tmp_path), loop)) == []


def check(listener: Listener, request: sgl.Req, first: int = 0) -> None:
    """Every computed token of a request told once, in order, exactly."""
    sequence = [*request.prompt, *request.output_ids]
    told = listener.told[request.rid]
    last = len(sequence) - 1  # a pass that was under way when the answer ended may feed it in
    assert [p for p, _, _ in told] in (list(range(first, last)), list(range(first, last + 1)))
    assert [t for _, t, _ in told] == sequence[first : first + len(told)]
    expected = sgl.hidden_states(sgl.Model(), sequence)
    for position, _, vector in told:
        torch.testing.assert_close(vector, expected[position])
    assert listener.outputs[request.rid] == list(request.output_ids)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    prompts=st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=9), min_size=1, max_size=4),
    answers=st.lists(st.integers(1, 7), min_size=4, max_size=4),
    chunk=st.integers(1, 10),
    overlap=st.booleans(),
    mixed=st.booleans(),
    cached=st.integers(0, 6),
    retract_at=st.integers(1, 12),
)
def test_whatever_the_scheduler_does_each_computed_token_is_told_once_in_order(
    prompts: list[list[int]], answers: list[int], chunk: int, overlap: bool, mixed: bool,
    cached: int, retract_at: int, tmp_path: Path,
) -> None:  # fmt: skip
    listener = Listener()
    with pytest.MonkeyPatch.context() as monkeypatch:
        double = watch(monkeypatch, configuration(tmp_path), listener)
        engine = double.Scheduler(overlap=overlap, chunk=chunk, mixed=mixed)
        requests = [
            sgl.Req(f"r{n}", prompt, max_new_tokens=answers[n]) for n, prompt in enumerate(prompts)
        ]
        engine.add(*requests)

        def retract(step: int) -> None:
            if step == retract_at and engine.running:
                engine.retract(engine.running[0], cached)

        engine.on_step = retract
        engine.run_event_loop()
    for request in requests:
        check(listener, request)
        assert not double.host.health.coverage(request.rid).dropped_tokens
    assert sorted(listener.ended) == sorted(request.rid for request in requests)


def test_tokens_out_of_the_radix_cache_are_counted_as_cached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listener = Listener()
    double = watch(monkeypatch, configuration(tmp_path), listener)
    engine, request = double.Scheduler(), sgl.Req("a", range(10, 20), prefix_len=6)
    engine.add(request)
    engine.run_event_loop()
    check(listener, request, first=6)
    coverage = double.host.health.coverage("a")
    assert coverage.cached_tokens == 6
    assert not coverage.dropped_tokens


def test_an_aborted_request_ends_with_what_was_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listener = Listener()
    double = watch(monkeypatch, configuration(tmp_path), listener)
    engine = double.Scheduler()
    running, queued = sgl.Req("a", [1, 2, 3], max_new_tokens=50), sgl.Req("b", [4, 5], 50)
    engine.add(running)

    def abort(step: int) -> None:
        if step == 4:
            engine.retract(running, 0)
            engine.add(queued)
            engine.abort_queued(running)
        if step == 6:
            queued.to_finish = "abort"

    engine.on_step = abort
    engine.run_event_loop()
    assert listener.ended == ["a", "b"]
    check(listener, running)
    check(listener, queued)


def test_headers_tenant_and_session_reach_the_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listener = Listener()
    double = watch(monkeypatch, configuration(tmp_path), listener)
    engine = double.Scheduler()
    said = {"nae_monitor": {"tenant": "acme"}}
    engine.add(sgl.Req("a", [1], custom_params=said, session_id="s1"))
    engine.run_event_loop()
    request = listener.requests["a"]
    assert (request.tenant, request.session_id, request.group_id) == ("acme", "s1", "a")


def test_a_request_of_a_very_long_id_is_told_and_ended_under_a_short_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listener = Listener()
    double = watch(monkeypatch, configuration(tmp_path), listener)
    engine, request = double.Scheduler(), sgl.Req("x" * 5000, [1, 2, 3], max_new_tokens=4)
    engine.add(request)
    engine.run_event_loop()
    name = bounded(request.rid)
    assert len(name) == 256
    assert (listener.ended, listener.outputs) == ([name], {name: list(request.output_ids)})
    assert len(listener.told[name]) >= 6


@pytest.mark.parametrize(
    ("field", "reason"),
    [("input_embeds", "no_token_ids"), ("multimodal_inputs", "no_token_ids"),
     ("beam_group", "beam_search")],
)  # fmt: skip
def test_requests_whose_rows_have_no_tokens_are_counted_and_not_told(
    field: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listener = Listener()
    double = watch(monkeypatch, configuration(tmp_path), listener)
    engine = double.Scheduler()
    engine.add(sgl.Req("a", [1, 2, 3], max_new_tokens=4, **{field: object()}))
    engine.run_event_loop()
    assert (listener.told["a"], listener.ended) == ([], ["a"])
    dropped = double.host.health.coverage("a").dropped_tokens
    assert list(dropped) == [reason]
    assert dropped[reason] >= 6
