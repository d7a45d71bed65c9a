"""Continuous batching: rows of mixed passes against a plain forward pass of each request."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture_oracle import EOS, LAYER, PAD, Recorder, assert_untouched, check_rows, make
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import continuous_api

from nae_monitor.capture import TransformersTap, request_scope
from nae_monitor.capture.continuous_patch import MANAGER_METHODS, PROCESSOR_METHODS
from nae_monitor.errors import UnsupportedError
from nae_monitor.health import Health
from nae_monitor.settings import CaptureSettings

Tap = Callable[..., TransformersTap]
SHARED = list(range(5, 45))
PROMPTS = [[*SHARED, 50], [*SHARED, 51, 52], list(range(10, 80)), [7, 8, 9]]


def small(**settings: Any) -> ContinuousBatchingConfig:
    """A cache and a token budget so small that prompts are cut up and prefixes shared."""
    wanted = {"max_batch_tokens": 32, "num_blocks": 64, "page_size": 8, **settings}
    return ContinuousBatchingConfig(**wanted)


def generation(tokens: int = 8, **settings: Any) -> GenerationConfig:
    wanted = {"do_sample": False, "eos_token_id": EOS, "pad_token_id": PAD, **settings}
    return GenerationConfig(max_new_tokens=tokens, **wanted)


def batch(model: Any, prompts: list[list[int]] = PROMPTS, **settings: Any) -> Any:
    return model.generate_batch(
        prompts, generation_config=generation(**settings), continuous_batching_config=small()
    )


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Any:
    """A model of its own, as a manager changes its attention while it runs."""
    model = make(getattr(request, "param", "llama"))
    yield model
    assert_untouched(model)


@pytest.fixture
def manager(served: Any) -> Any:
    """Makes a manager; stopped at the end, whatever came of the test."""
    made = []

    def build(**settings: Any) -> Any:
        found = served.init_continuous_batching(
            generation_config=generation(**settings), continuous_batching_config=small()
        )
        made.append(found)
        found.start()
        return found

    yield build
    for item in made:
        item.stop(block=True, timeout=10)


def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


@pytest.mark.parametrize("served", ["llama", "qwen2"], indirect=True)
def test_rows_of_mixed_passes_are_the_hidden_states_of_each_request(
    served: Any, tap: Tap, recorder: Recorder
) -> None:
    with tap(served), request_scope("r"):
        output = batch(served)
    assert check_rows(served, recorder, every=False) > 100
    worst = 0.0
    for name, rows in recorder.rows_of.items():
        ids = torch.tensor([recorder.sequence(name)])
        with torch.no_grad():
            states = served(ids, output_hidden_states=True, use_cache=False).hidden_states
        worst = max(worst, *(float((v - states[LAYER][0, p]).abs().max()) for p, _, _, v in rows))
    assert worst <= 2e-5
    for index, result in enumerate(output.values()):
        assert recorder.prompts[f"r#{index}"] == PROMPTS[index]
        assert recorder.completions[f"r#{index}"] == result.generated_tokens


def test_a_prompt_longer_than_a_pass_has_each_position_once(
    served: Any, tap: Tap, recorder: Recorder
) -> None:
    with tap(served), request_scope("r"):
        batch(served)
    assert recorder.positions("r#2") == list(range(70 + 8 - 1))


def test_a_shared_prefix_is_counted_as_cached(
    served: Any, tap: Tap, recorder: Recorder, health: Health
) -> None:
    with tap(served), request_scope("r"):
        batch(served)
    cached = {name: health.coverage(name).cached_tokens for name in recorder.prompts}
    assert sum(cached.values()) > 0
    for name, amount in cached.items():
        coverage = health.coverage(name)
        assert coverage.seen_tokens == amount + len(recorder.rows_of[name])
        assert coverage.seen_tokens == len(recorder.sequence(name)) - 1


def test_output_is_the_same_with_and_without_a_tap(served: Any, tap: Tap) -> None:
    plain = [result.generated_tokens for result in batch(served).values()]
    with tap(served):
        watched = [result.generated_tokens for result in batch(served).values()]
    assert watched == plain


def test_every_request_ends_once(served: Any, tap: Tap, recorder: Recorder) -> None:
    with tap(served), request_scope("r"):
        batch(served)
    assert sorted(recorder.finished) == ["r#0", "r#1", "r#2", "r#3"]
    assert recorder.events[-1][0] == "finished"


def test_a_cancelled_request_ends(served: Any, tap: Tap, recorder: Recorder, manager: Any) -> None:
    with tap(served):
        running = manager(tokens=2_000)
        running.add_request([7, 8, 9], request_id="gone")
        until(lambda: bool(recorder.completions.get("gone")))
        running.cancel_request("gone")
        until(lambda: "gone" in recorder.finished)
    assert len(recorder.positions("gone")) == len(set(recorder.positions("gone"))) > 2


def test_a_cancelled_id_may_be_handed_in_again(
    served: Any, tap: Tap, recorder: Recorder, manager: Any
) -> None:
    with tap(served):
        running = manager(tokens=2_000)
        running.add_request([7, 8, 9], request_id="again")
        until(lambda: bool(recorder.completions.get("again")))
        running.cancel_request("again")
        until(lambda: recorder.finished == ["again"])
        running.add_request([9, 8], request_id="again", max_new_tokens=4)
        until(lambda: recorder.finished == ["again", "again"])
    assert recorder.prompts["again"] == [9, 8]
    assert recorder.positions("again")[-5:] == [0, 1, 2, 3, 4]


def test_an_explicit_id_is_kept_and_a_scope_goes_before_it(
    served: Any, tap: Tap, recorder: Recorder, manager: Any
) -> None:
    with tap(served):
        running = manager()
        running.add_request([7, 8, 9], request_id="chat-7")
        with request_scope("mine", session_id="s", tenant="acme"):
            running.add_request([9, 8], request_id="chat-8")
        until(lambda: len(recorder.finished) == 2)
    assert set(recorder.requests) == {"chat-7", "mine"}
    assert recorder.requests["mine"].tenant == "acme"
    assert recorder.requests["mine"].session_id == "s"


def test_several_answers_to_a_prompt_are_requests_of_their_own(
    served: Any, tap: Tap, recorder: Recorder
) -> None:
    with tap(served), request_scope("r"):
        batch(served, PROMPTS[2:], num_return_sequences=2, do_sample=True)
    assert sorted(recorder.finished) == ["r#0", "r#1", "r#2", "r#3"]
    assert recorder.prompts["r#0"] == recorder.prompts["r#1"] == PROMPTS[2]
    check_rows(served, recorder, every=False)


def test_settings_choose_phases_and_positions(
    served: Any, tap: Tap, recorder: Recorder, health: Health
) -> None:
    with tap(served, phases=("completion",), min_position=5), request_scope("r"):
        batch(served, [[7, 8, 9]])
    assert recorder.positions("r") == list(range(5, 10))
    assert health.coverage("r").excluded_tokens == 5


def test_requests_under_way_end_when_the_tap_goes(
    served: Any, tap: Tap, recorder: Recorder, manager: Any
) -> None:
    with tap(served):
        running = manager(tokens=2_000)
        running.add_request([7, 8, 9], request_id="long")
        until(lambda: bool(recorder.completions.get("long")))
    assert recorder.finished == ["long"]
    heard = len(recorder.events)
    running.add_request([7, 8], request_id="after", max_new_tokens=3)
    assert running.get_result("after", timeout=30) is not None
    assert len(recorder.events) == heard


def test_what_ran_before_the_watch_is_dropped_and_not_called_cached(
    served: Any, tap: Tap, recorder: Recorder, health: Health, manager: Any
) -> None:
    running = manager(tokens=2_000)
    running.add_request([7, 8, 9], request_id="early", streaming=True)
    assert running.get_result("early", timeout=60) is not None  # its first token
    with tap(served):
        until(lambda: bool(recorder.rows_of.get("early")))
    coverage = health.coverage("early")
    assert coverage.cached_tokens == 0
    assert coverage.dropped_tokens["before_watch"] == recorder.positions("early")[0] > 0


def test_nothing_stays_patched(served: Any, tap: Tap) -> None:
    manager_class = continuous_api.ContinuousBatchingManager
    processor_class = continuous_api.ContinuousBatchProcessor
    before = [manager_class.__dict__[name] for name in MANAGER_METHODS]
    before += [processor_class.__dict__[name] for name in PROCESSOR_METHODS]
    first, second = tap(served), tap(make("llama"))
    first.attach()
    second.attach()
    assert manager_class.__dict__["start"] is not before[0]
    first.detach()
    second.detach()
    after = [manager_class.__dict__[name] for name in MANAGER_METHODS]
    after += [processor_class.__dict__[name] for name in PROCESSOR_METHODS]
    assert all(a is b for a, b in zip(after, before, strict=True))


def test_what_hooks_cannot_see_is_refused_before_it_starts(served: Any, tap: Tap) -> None:
    config = small(use_async_batching=True)
    with tap(served), pytest.raises(UnsupportedError, match="use_async_batching"):
        served.init_continuous_batching(
            generation_config=generation(), continuous_batching_config=config
        ).start()


def test_an_unknown_transformers_is_refused_where_it_batches_continuously(
    served: Any, tap: Tap, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(continuous_api.ContinuousBatchProcessor, "update_batch")
    with tap(served), request_scope("r"):
        served.generate(torch.tensor([[7, 8, 9]]), max_new_tokens=2, do_sample=False)
        with pytest.raises(UnsupportedError, match=r"transformers 5\.23"):
            served.generate_batch([[7, 8, 9]])
    assert recorder.finished == ["r"]
    assert served.init_continuous_batching(generation_config=generation()) is not None


class Raising(Recorder):
    def rows(self, rows: Any) -> None:
        raise RuntimeError


def test_a_listener_that_raises_hurts_nobody_and_is_counted(served: Any, health: Health) -> None:
    plain = [result.generated_tokens for result in batch(served).values()]
    listener = Raising()
    tap = TransformersTap(
        served,
        None,
        layer=LAYER,
        settings=CaptureSettings(min_position=0),
        listener=listener,
        health=health,
        model_name="tiny",
    )
    with tap, request_scope("r"):
        watched = [result.generated_tokens for result in batch(served).values()]
    assert watched == plain
    assert sorted(listener.finished) == ["r#0", "r#1", "r#2", "r#3"]
    counters = health.counters()
    lost = counters["dropped.listener_failed"] + counters["dropped.circuit_open"]
    assert lost == counters["tokens.seen"] - counters["tokens.cached"]


def test_a_pass_in_another_order_than_planned_is_dropped(
    served: Any, tap: Tap, recorder: Recorder, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nae_monitor.capture import mixed_rows

    def others(state: Any, start: int, end: int) -> list[int]:
        return [PAD] * (end - start)

    monkeypatch.setattr(mixed_rows, "_tokens", others)
    with tap(served), request_scope("r"):
        batch(served, [[7, 8, 9]], tokens=3)
    assert recorder.rows_of == {}
    assert health.coverage("r").dropped_tokens == {"not_mapped": 5}
    assert health.counters()["blind.not_mapped"] == 1


class StopAfter:
    """Ends the sequence once it has four completion tokens."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def stops(self, request_id: str, length_tokens: int, generated_tokens: int) -> bool:
        return request_id == "r#1" and generated_tokens >= 4

    def stopped(self, request_id: str, length_tokens: int, generated_tokens: int) -> None:
        self.told.append((request_id, length_tokens, generated_tokens))


def test_a_stop_ends_one_request_and_delivers_it(recorder: Recorder, health: Health) -> None:
    model, stopping = make("llama"), StopAfter()
    tap = TransformersTap(
        model,
        None,
        layer=LAYER,
        settings=CaptureSettings(min_position=0),
        listener=recorder,
        health=health,
        model_name="tiny",
        stopping=stopping,
    )
    with tap, request_scope("r"):
        output = batch(model)
    assert [len(result.generated_tokens) for result in output.values()] == [8, 4, 8, 8]
    assert stopping.told == [("r#1", 46, 4)]


def test_a_request_put_off_by_a_full_cache_gives_each_position_once(
    served: Any, tap: Tap, recorder: Recorder
) -> None:
    tight = ContinuousBatchingConfig(
        max_batch_tokens=32, num_blocks=8, page_size=8, allow_block_sharing=False
    )
    with tap(served), request_scope("r"):
        served.generate_batch(
            [[*range(10, 25)], [*range(30, 45)], [*range(50, 65)]],
            generation_config=generation(tokens=20),
            continuous_batching_config=tight,
        )
    assert len(recorder.prompts) == 3
    assert check_rows(served, recorder) == 3 * 34
