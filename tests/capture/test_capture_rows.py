"""Every captured row against the hidden states of an ordinary forward pass."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from capture_oracle import EOS, PAD, Recorder, check_rows, left_padded, visible
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, GenerationConfig

from nae_monitor.capture import TransformersTap, request_scope
from nae_monitor.health import Health
from nae_monitor.settings import CaptureSettings

Build = Callable[..., TransformersTap]
PROMPTS = [[5, 9, 33], [7, 8, 9, 10, 11, 12, 40], [60]]


def test_one_prompt(model: Any, tap: Build, recorder: Recorder, health: Health) -> None:
    with tap(model):
        output = model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=6, do_sample=False)
    (request_id,) = recorder.prompts
    assert recorder.sequence(request_id) == output[0].tolist()
    assert check_rows(model, recorder) == output.shape[1] - 1
    assert health.coverage(request_id).seen_tokens == output.shape[1] - 1
    assert recorder.finished == [request_id]


def test_a_batch_with_left_padding(model: Any, tap: Build, recorder: Recorder) -> None:
    inputs = left_padded(PROMPTS)
    with tap(model), request_scope("r"):
        output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert list(recorder.prompts) == ["r#0", "r#1", "r#2"]
    for i, prompt in enumerate(PROMPTS):
        assert recorder.prompts[f"r#{i}"] == prompt
        assert recorder.completions[f"r#{i}"] == visible(output[i], 7)
    check_rows(model, recorder)


def test_padding_without_a_mask_is_inferred_as_transformers_does(
    model: Any, tap: Build, recorder: Recorder
) -> None:
    ids = left_padded(PROMPTS)["input_ids"]
    with tap(model):
        model.generate(ids, max_new_tokens=4, do_sample=False)
    assert list(recorder.prompts.values()) == PROMPTS
    check_rows(model, recorder)


def test_sampling_several_sequences_per_prompt(model: Any, tap: Build, recorder: Recorder) -> None:
    torch.manual_seed(1)
    with tap(model), request_scope(["a", "b", "c"]):
        output = model.generate(
            **left_padded(PROMPTS), max_new_tokens=5, do_sample=True, num_return_sequences=2
        )
    assert list(recorder.prompts) == ["a#0", "a#1", "b#0", "b#1", "c#0", "c#1"]
    for row, request_id in zip(output, recorder.prompts, strict=True):
        assert recorder.completions[request_id] == visible(row, 7)
    check_rows(model, recorder)


@pytest.mark.parametrize("pad", [PAD, EOS])
def test_a_finished_sequence_gives_no_rows_for_its_padding(
    model: Any, tap: Build, recorder: Recorder, health: Health, pad: int
) -> None:
    endings = list(range(20, 60))  # so many that sequences end at different steps
    torch.manual_seed(3)
    with tap(model), request_scope("r"):
        output = model.generate(
            **left_padded(PROMPTS),
            max_new_tokens=16,
            do_sample=True,
            num_return_sequences=3,
            eos_token_id=endings,
            pad_token_id=pad,
        )
    lengths = set()
    for row, request_id in zip(output, recorder.prompts, strict=True):
        completion = row[7:].tolist()
        stop = next((i for i, t in enumerate(completion) if t in endings), len(completion) - 1)
        assert recorder.completions[request_id] == completion[: stop + 1]
        lengths.add(stop)
        seen = health.coverage(request_id).seen_tokens
        assert seen == len(recorder.rows_of[request_id])
    assert len(lengths) > 1
    check_rows(model, recorder)


def test_stop_strings_end_a_sequence_before_its_padding(
    llama_model: Any, tap: Build, recorder: Recorder
) -> None:
    class StopAt:
        def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return ids[:, -1] % 3 == 0

    torch.manual_seed(3)
    with tap(llama_model):
        output = llama_model.generate(
            **left_padded(PROMPTS),
            max_new_tokens=12,
            do_sample=True,
            num_return_sequences=3,
            stopping_criteria=[StopAt()],
        )
    for row, request_id in zip(output, recorder.prompts, strict=True):
        completion = row[7:].tolist()
        stop = next(
            (i for i, t in enumerate(completion) if t % 3 == 0 or t == EOS), len(completion)
        )
        assert recorder.completions[request_id] == completion[: stop + 1]
    check_rows(llama_model, recorder)


@pytest.mark.parametrize("only_new", [False, True])
def test_a_further_turn_on_the_same_cache_continues_the_request(
    model: Any, tap: Build, recorder: Recorder, health: Health, only_new: bool
) -> None:
    cache = DynamicCache(config=model.config)
    with tap(model), request_scope("chat"):
        first = model.generate(
            torch.tensor([PROMPTS[1]]),
            past_key_values=cache,
            max_new_tokens=5,
            min_new_tokens=5,
            do_sample=False,
        )
        held = cache.get_seq_length()
        full = torch.cat([first, torch.tensor([[50, 51, 52]])], dim=1)
        ids = full[:, held:] if only_new else full
        second = model.generate(
            ids,
            attention_mask=torch.ones_like(full),
            past_key_values=cache,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
        )
    assert list(recorder.prompts) == ["chat"]
    assert recorder.prompts["chat"] == full[0].tolist()
    assert recorder.completions["chat"] == second[0, ids.shape[1] :].tolist()
    recorder.rows_of["chat"] = [
        # the first turn's completion is the second turn's prompt
        (p, t, phase if p >= full.shape[1] else phase.PROMPT, v)
        for p, t, phase, v in recorder.rows_of["chat"]
    ]
    assert check_rows(model, recorder) == full.shape[1] + 3
    assert health.coverage("chat").seen_tokens == full.shape[1] + 3
    assert health.coverage("chat").cached_tokens == 0


def test_a_padded_batch_continues_its_cache(model: Any, tap: Build, recorder: Recorder) -> None:
    inputs = left_padded(PROMPTS)
    cache = DynamicCache(config=model.config)
    options = {"past_key_values": cache, "do_sample": False, "eos_token_id": None}
    with tap(model), request_scope("chat"):
        first = model.generate(**inputs, **options, max_new_tokens=4)
        full = torch.cat([first, torch.tensor([[50, 51], [52, 53], [54, 55]])], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones((3, 6), dtype=torch.long)], dim=1)
        recorder.rows_of.clear()
        model.generate(full, attention_mask=mask, **options, max_new_tokens=3)
    for i, prompt in enumerate(PROMPTS):
        # 1 token sampled last in the first turn, 2 of the new turn, 2 of 3 sampled
        start = len(prompt) + 3
        assert recorder.positions(f"chat#{i}") == list(range(start, start + 5))
    assert check_rows(model, recorder, every=False) == 15


def test_a_cache_filled_out_of_sight_is_counted_as_cached(
    model: Any, tap: Build, recorder: Recorder, health: Health
) -> None:
    ids = torch.tensor([PROMPTS[1]])
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :4], past_key_values=cache)
    with tap(model), request_scope("r"):
        output = model.generate(ids, past_key_values=cache, max_new_tokens=3, do_sample=False)
    assert recorder.positions("r") == list(range(4, output.shape[1] - 1))
    check_rows(model, recorder, every=False)
    coverage = health.coverage("r")
    assert coverage.cached_tokens == 4
    assert coverage.seen_tokens == output.shape[1] - 1


def test_chunked_prefill(model: Any, tap: Build, recorder: Recorder) -> None:
    with tap(model):
        model.generate(
            **left_padded(PROMPTS), max_new_tokens=4, do_sample=False, prefill_chunk_size=3
        )
    check_rows(model, recorder)


def test_without_a_cache_no_row_comes_twice(model: Any, tap: Build, recorder: Recorder) -> None:
    with tap(model):
        model.generate(**left_padded(PROMPTS), max_new_tokens=4, do_sample=False, use_cache=False)
    check_rows(model, recorder)


def test_a_static_cache(model: Any, tap: Build, recorder: Recorder) -> None:
    with tap(model):
        model.generate(
            **left_padded(PROMPTS),
            max_new_tokens=4,
            do_sample=False,
            cache_implementation="static",
        )
    check_rows(model, recorder)


def test_several_threads_at_once(model: Any, tap: Build, recorder: Recorder) -> None:
    together = threading.Barrier(4)

    def work(n: int) -> None:
        together.wait()
        with request_scope(f"t{n}"):
            model.generate(
                **left_padded([[10 + n, 20 + n], [30 + n]]), max_new_tokens=6, do_sample=False
            )

    with tap(model), ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert sorted(recorder.prompts) == [f"t{n}#{i}" for n in range(4) for i in range(2)]
    assert all(recorder.prompts[f"t{n}#1"] == [30 + n] for n in range(4))
    check_rows(model, recorder)


def test_a_call_without_ids_starts_from_the_bos_token(
    llama_model: Any, tap: Build, recorder: Recorder
) -> None:
    with tap(llama_model):
        llama_model.generate(max_new_tokens=3, do_sample=False)
    assert list(recorder.prompts.values()) == [[2]]
    check_rows(llama_model, recorder)


def test_options_in_a_generation_config_are_followed(
    llama_model: Any, tap: Build, recorder: Recorder
) -> None:
    config = GenerationConfig(max_new_tokens=3, do_sample=True, num_return_sequences=3)
    with tap(llama_model), request_scope("r"):
        llama_model.generate(torch.tensor([PROMPTS[0]]), config)
    assert list(recorder.prompts) == ["r#0", "r#1", "r#2"]
    check_rows(llama_model, recorder)


@pytest.mark.parametrize("layer", [1, 2, 4])
def test_other_layers(model: Any, recorder: Recorder, tap: Build, layer: int) -> None:
    vectors: list[torch.Tensor] = []
    recorder.rows = lambda batch: vectors.append(batch.vectors)  # type: ignore[method-assign]
    with tap(model, layer=layer):
        output = model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=3, do_sample=False)
    with torch.no_grad():
        expected = model(output[:, :-1], output_hidden_states=True).hidden_states[layer][0]
    torch.testing.assert_close(torch.cat(vectors), expected, atol=1e-4, rtol=0)


def test_phases_and_first_position_are_kept_to(
    llama_model: Any, tap: Build, recorder: Recorder, health: Health
) -> None:
    with tap(llama_model, phases=("completion",), min_position=5), request_scope("r"):
        llama_model.generate(
            **left_padded(PROMPTS), max_new_tokens=6, do_sample=False, eos_token_id=None
        )
    assert recorder.positions("r#0") == [5, 6, 7]  # prompt of 3, 6 sampled, the last not fed
    assert recorder.positions("r#1") == list(range(7, 12))
    assert recorder.positions("r#2") == [5]
    check_rows(llama_model, recorder, every=False)
    counts = health.counters()
    assert counts["tokens.seen"] == 8 + 12 + 6
    assert counts["tokens.excluded"] == 26 - 3 - 5 - 1


def test_rows_are_copies(llama_model: Any, tap: Build, recorder: Recorder) -> None:
    block = llama_model.model.layers[2]

    def spoil(module: Any, args: Any, output: torch.Tensor) -> None:
        spoiled.append(output)

    spoiled: list[torch.Tensor] = []
    with tap(llama_model):
        handle = block.register_forward_hook(spoil)
        llama_model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=3, do_sample=False)
        handle.remove()
    for output in spoiled:
        output.zero_()
    check_rows(llama_model, recorder)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    new_tokens=st.integers(1, 9),
    copies=st.integers(1, 2),
    chunk=st.one_of(st.none(), st.integers(1, 4)),
    endings=st.integers(1, 60),
    pad_is_eos=st.booleans(),
    gather_steps=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_any_padded_batch_is_exact(
    models: dict[str, Any],
    lengths: list[int],
    new_tokens: int,
    copies: int,
    chunk: int | None,
    endings: int,
    pad_is_eos: bool,
    gather_steps: int,
    seed: int,
) -> None:
    model = list(models.values())[seed % 3]
    torch.manual_seed(seed)
    prompts = [torch.randint(3, 96, (n,)).tolist() for n in lengths]
    recorder, health = Recorder(), Health()
    watch = TransformersTap(
        model,
        None,
        layer=3,
        settings=CaptureSettings(min_position=0, gather_steps=gather_steps),
        listener=recorder,
        health=health,
        model_name="tiny",
    )
    with watch:
        output = model.generate(
            **left_padded(prompts),
            max_new_tokens=new_tokens,
            do_sample=True,
            num_return_sequences=copies,
            prefill_chunk_size=chunk,
            eos_token_id=list(range(1, 1 + endings)),
            pad_token_id=1 if pad_is_eos else PAD,
        )
    compared = check_rows(model, recorder)
    assert health.counters()["tokens.seen"] == compared
    for row, request_id in zip(output, recorder.prompts, strict=True):
        sequence = row[max(lengths) :].tolist()
        assert sequence[: len(recorder.completions[request_id])] == recorder.completions[request_id]
        assert all(
            t == (1 if pad_is_eos else PAD)
            for t in sequence[len(recorder.completions[request_id]) :]
        )
    assert not [
        name for name in health.counters() if name.startswith(("dropped", "failed", "blind"))
    ]


def test_the_oracle_tells_positions_and_layers_apart(model: Any) -> None:
    ids = torch.arange(3, 17)[None]
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    rows = torch.cat([state[0] for state in states[1:-1]])
    distances = (rows[:, None] - rows[None]).abs().amax(dim=-1)
    distances.fill_diagonal_(1.0)
    assert distances.min() > 0.01
