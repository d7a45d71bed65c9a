"""What goes wrong on purpose: our code, the host's, and a model that hooks do not reach."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture_oracle import LAYER, Recorder, assert_untouched, check_rows, left_padded, make
from transformers import CompileConfig, GenerationConfig

from nae_monitor.capture import TransformersTap, request_scope, self_test
from nae_monitor.errors import ConfigurationError, UnsupportedError
from nae_monitor.health import Health

Build = Callable[..., TransformersTap]
IDS = torch.tensor([[5, 6, 7, 8]])
SIX: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


class OurFaultError(Exception):
    pass


@pytest.mark.parametrize("method", ["request_started", "rows", "tokens", "request_finished"])
def test_an_exception_of_the_listener_never_reaches_generate(
    model: Any, tap: Build, recorder: Recorder, health: Health, method: str
) -> None:
    expected = model.generate(IDS, **SIX)

    def fail(*_: object) -> None:
        raise OurFaultError("quotes the prompt")

    setattr(recorder, method, fail)
    with tap(model):
        for _ in range(3):
            assert torch.equal(model.generate(IDS, **SIX), expected)
    counts = health.counters()
    part = method.removeprefix("request_")
    assert counts[f"failed.capture.{part}.OurFaultError"] >= 3
    if method != "request_finished":
        assert len(recorder.finished) >= 1


def test_five_failures_in_a_row_silence_the_tap_and_losses_are_counted(
    llama_model: Any, tap: Build, recorder: Recorder, health: Health
) -> None:
    calls = []

    def fail(batch: object) -> None:
        calls.append(batch)
        raise OurFaultError

    recorder.rows = fail  # type: ignore[method-assign]
    with tap(llama_model, gather_steps=1):
        with request_scope("first"):
            llama_model.generate(IDS, **SIX | {"max_new_tokens": 10})
        with request_scope("second"):
            llama_model.generate(IDS, **SIX)
    assert len(calls) == 5
    assert health.coverage("first").seen_tokens == 13
    assert health.coverage("first").dropped_tokens == {"listener_failed": 8, "circuit_open": 5}
    assert health.counters()["dropped.circuit_open"] == 5 + 10
    assert list(recorder.prompts) == ["first"]
    assert recorder.finished == ["first"]


def test_an_interrupt_in_the_middle_ends_the_request_and_frees_the_model(
    llama_model: Any, tap: Build, recorder: Recorder, health: Health
) -> None:
    def interrupt(ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        if ids.shape[1] >= 7:
            raise KeyboardInterrupt
        return torch.zeros(len(ids), dtype=torch.bool)

    with pytest.raises(KeyboardInterrupt), tap(llama_model):
        llama_model.generate(IDS, **SIX, stopping_criteria=[interrupt])
    assert len(recorder.finished) == 1
    assert check_rows(llama_model, recorder, every=False) == 6
    assert_untouched(llama_model)


def test_an_interrupt_inside_the_listener_is_the_users(
    llama_model: Any, tap: Build, recorder: Recorder
) -> None:
    def interrupt(batch: object) -> None:
        raise KeyboardInterrupt

    recorder.rows = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt), tap(llama_model):
        llama_model.generate(IDS, **SIX)
    assert len(recorder.finished) == 1
    assert_untouched(llama_model)


def test_an_exception_of_generate_passes_unchanged(
    llama_model: Any, tap: Build, recorder: Recorder, health: Health
) -> None:
    with tap(llama_model):
        with pytest.raises(ValueError, match="no_such_argument"):
            llama_model.generate(IDS, no_such_argument=1)
        with pytest.raises(TypeError):
            llama_model.generate(IDS, None, None, None, None, None, None, None, None, None, None, 1)
        llama_model.generate(IDS, **SIX)
    assert len(recorder.prompts) == len(recorder.finished)
    check_rows(llama_model, recorder, every=False)
    assert not any(name.startswith("blind") for name in health.counters())


def test_a_failing_forward_pass_loses_no_count(
    llama_model: Any, tap: Build, recorder: Recorder, health: Health
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    with tap(llama_model), request_scope("r"):
        handle = llama_model.model.layers[0].register_forward_hook(fail)
        with pytest.raises(MemoryError):
            llama_model.generate(IDS, **SIX)
        handle.remove()
    assert health.coverage("r").dropped_tokens == {"not_captured": 4}
    assert recorder.finished == ["r"]


def test_attach_and_detach_may_be_repeated(
    llama_model: Any, tap: Build, recorder: Recorder
) -> None:
    watch = tap(llama_model)
    assert_untouched(llama_model)
    watch.attach()
    watch.attach()
    llama_model.generate(IDS, **SIX)
    watch.detach()
    watch.detach()
    assert_untouched(llama_model)
    llama_model.generate(IDS, **SIX)
    assert len(recorder.prompts) == 1
    with watch:
        llama_model.generate(IDS, **SIX)
    assert len(recorder.prompts) == 2
    check_rows(llama_model, recorder)


def test_a_generate_kept_from_before_detach_passes_through(
    llama_model: Any, tap: Build, recorder: Recorder
) -> None:
    with tap(llama_model):
        kept = llama_model.generate
    assert torch.equal(kept(IDS, **SIX), llama_model.generate(IDS, **SIX))
    assert not recorder.prompts


def test_an_instances_own_generate_is_put_back(tap: Build, recorder: Recorder) -> None:
    model = make("llama")
    own = model.generate = model.generate
    with tap(model):
        assert model.generate is not own
        model.generate(IDS, **SIX)
    assert model.generate is own
    check_rows(model, recorder)


def test_a_failing_attach_leaves_nothing_behind(
    llama_model: Any, tap: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OurFaultError

    monkeypatch.setattr("nae_monitor.capture.transformers_tap.inspect.signature", fail)
    with pytest.raises(OurFaultError):
        tap(llama_model).attach()
    assert_untouched(llama_model)


def test_two_taps_on_one_model_see_the_same(
    llama_model: Any, tap: Build, recorder: Recorder
) -> None:
    with tap(llama_model), tap(llama_model), request_scope("r"):
        llama_model.generate(IDS, **SIX)
    assert recorder.positions("r").count(0) + recorder.positions("r/2").count(0) == 2
    assert_untouched(llama_model)


def test_passes_outside_generate_are_counted_not_captured(
    llama_model: Any, tap: Build, recorder: Recorder, health: Health
) -> None:
    with tap(llama_model), torch.no_grad():
        llama_model(IDS)
        llama_model(inputs_embeds=torch.zeros(2, 3, 64))
    assert health.counters() == {"dropped.outside_generate": 10}
    assert not recorder.prompts


def test_a_foreign_pass_inside_generate_is_counted_not_captured(
    llama_model: Any, tap: Build, recorder: Recorder, health: Health
) -> None:
    def peek(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        llama_model(ids[:, -1:])
        return scores

    with tap(llama_model):
        llama_model.generate(IDS, **SIX, logits_processor=[peek])
    assert health.counters()["dropped.unmapped_pass"] == 6
    check_rows(llama_model, recorder)


def test_a_mask_that_fits_nothing_is_counted_and_left_to_generate(
    llama_model: Any, tap: Build, recorder: Recorder, health: Health
) -> None:
    with tap(llama_model):
        output = llama_model.generate(IDS, attention_mask=torch.zeros(1, 9), **SIX)
    assert health.counters()["dropped.not_mapped"] == output.numel()
    assert health.counters()["failed.capture.start.ValueError"] == 1
    assert not recorder.prompts


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"generation_config": GenerationConfig(num_beams=2, max_new_tokens=3)},
        {"num_beams": 4, "num_beam_groups": 2},
        {"prompt_lookup_num_tokens": 3},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "high"},
        {"guidance_scale": 1.5},
        {"cache_implementation": "paged"},
        {"custom_generate": lambda *_, **__: None},
        {"inputs_embeds": torch.zeros(1, 3, 64)},
        {"token_healing": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_what_cannot_be_watched_is_refused_before_it_begins(
    llama_model: Any, tap: Build, recorder: Recorder, health: Health, options: dict[str, Any]
) -> None:
    with tap(llama_model), pytest.raises(UnsupportedError, match="cannot be monitored"):
        llama_model.generate(IDS, **options)
    assert not recorder.prompts
    assert not health.counters()
    assert_untouched(llama_model)


def test_an_assistant_model_is_refused(models: dict[str, Any], tap: Build) -> None:
    with tap(models["llama"]), pytest.raises(UnsupportedError, match="assistant_model"):
        models["llama"].generate(IDS, assistant_model=models["qwen2"])


def test_beams_in_the_models_own_config_are_refused(tap: Build) -> None:
    model = make("llama")
    model.generation_config.num_beams = 2
    with tap(model), pytest.raises(UnsupportedError, match="num_beams=2"):
        model.generate(IDS)
    with tap(model):
        model.generate(IDS, num_beams=1, max_new_tokens=2)


@pytest.mark.parametrize("layer", [-1, 0, 5, 99])
def test_a_layer_out_of_range_is_refused(model: Any, tap: Build, layer: int) -> None:
    with pytest.raises(ConfigurationError, match="1 to 4"):
        tap(model, layer=layer)


def test_a_model_without_blocks_is_refused(tap: Build) -> None:
    with pytest.raises(UnsupportedError, match="Linear"):
        tap(torch.nn.Linear(2, 2))


# The first use of the compiler imports it, which takes minutes where the processor is shared.
compiles = pytest.mark.timeout(1200)


def _static_compiled() -> dict[str, Any]:
    """Options under which transformers compiles every pass but the first."""
    torch._dynamo.reset()
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True
    return SIX | {"cache_implementation": "static", "compile_config": config}


@compiles
def test_passes_compiled_after_attaching_are_seen(tap: Build, recorder: Recorder) -> None:
    model, options = make("llama"), _static_compiled()
    with tap(model):
        model.generate(IDS, **options)
    assert check_rows(make("llama"), recorder) == 9


@compiles
def test_passes_compiled_out_of_sight_are_counted(tap: Build, health: Health) -> None:
    model, options = make("llama"), _static_compiled()
    model.generate(IDS, **options)
    with tap(model), request_scope("r"):
        model.generate(IDS, **options)
    assert health.counters()["blind.some_rows"] == 1  # the prompt runs eagerly
    assert health.coverage("r").dropped_tokens == {"not_captured": 5}
    assert health.coverage("r").seen_tokens == 9


@compiles
def test_a_compiled_model_that_hides_its_blocks_is_never_silent(
    tap: Build, recorder: Recorder, health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.reset()
    model, one = make("llama"), SIX | {"max_new_tokens": 1}
    model.forward = torch.compile(model.forward, backend="eager")
    model.generate(IDS, **one)
    with tap(model), caplog.at_level(logging.ERROR, logger="nae_monitor"):
        for n in range(2):
            with request_scope(f"r{n}"):
                model.generate(IDS, **one)
    assert health.counters()["blind.no_rows"] == 2
    assert health.coverage("r0").dropped_tokens == {"not_captured": 4}
    assert health.coverage("r0").seen_tokens == 4
    assert len([r for r in caplog.records if "was not seen" in r.message]) == 1
    assert recorder.completions["r0"] == recorder.completions["r1"] != []


def test_one_graph_is_refused(tap: Build) -> None:
    model = make("llama")
    config = CompileConfig(backend="eager", mode=None, fullgraph=True)
    config._compile_all_devices = True
    with tap(model), pytest.raises(UnsupportedError, match="fullgraph"):
        model.generate(IDS, **SIX, cache_implementation="static", compile_config=config)


def test_the_self_test_passes_on_a_model_that_can_be_watched(model: Any) -> None:
    assert self_test(model, None, layer=3) < 1e-5


def hooks_of(model: Any) -> dict[str, list[Any]]:
    return {name: list(module._forward_hooks.values()) for name, module in model.named_modules()}


def test_the_self_test_leaves_no_hook_behind_and_hidden_states_can_still_be_asked_for() -> None:
    model = make("llama")
    before, marks = hooks_of(model), set(vars(model))
    self_test(model, None, layer=LAYER)
    assert hooks_of(model) == before
    assert set(vars(model)) == marks
    output = model(input_ids=torch.ones(1, 3, dtype=torch.long), output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1


def test_the_self_test_leaves_hooks_that_were_there() -> None:
    model = make("llama")
    model(input_ids=torch.ones(1, 3, dtype=torch.long), output_hidden_states=True)
    before = hooks_of(model)
    assert any(before.values())
    self_test(model, None, layer=LAYER)
    assert hooks_of(model) == before


def test_the_self_test_refuses_a_model_that_hides_its_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make("llama")
    hidden = copy.deepcopy(model.model.layers[2])  # a block that never runs
    monkeypatch.setattr(
        "nae_monitor.capture.transformers_tap.decoder_block", lambda found, layer: hidden
    )
    with pytest.raises(UnsupportedError, match="0 of 14 rows"):
        self_test(model, None, layer=3)


def test_the_self_test_refuses_a_block_that_is_not_the_hidden_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make("llama")

    def other(found: Any, layer: int) -> Any:
        return found.model.layers[layer]

    monkeypatch.setattr("nae_monitor.capture.transformers_tap.decoder_block", other)
    with pytest.raises(UnsupportedError, match="differ"):
        self_test(model, None, layer=3)


def test_a_batch_of_wrong_ids_is_named_afresh(
    llama_model: Any, tap: Build, recorder: Recorder
) -> None:
    with tap(llama_model), request_scope(["only-one"]):
        llama_model.generate(**left_padded([[5, 6], [7]]), **SIX)
    first, second = recorder.prompts
    assert first == "only-one"
    assert len(second) == 32
    check_rows(llama_model, recorder)
