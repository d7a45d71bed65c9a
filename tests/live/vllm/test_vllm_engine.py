"""The offline engine of vLLM: every row against ``hidden_states`` of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from vllm_live import Result, assert_exact

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]
SHORT = [
    {"prompt": "The capital of France is", "max_tokens": 12},
    {"prompt": "Once upon a time there was a little robot who", "max_tokens": 24},
    {"prompt": "Write a haiku about rain:", "max_tokens": 17},
]
LONG = [
    {"prompt": f"Story {n}. " + "The robot went to the market and bought a fish. " * 9,
     "max_tokens": 48}
    for n in range(4)
]  # fmt: skip


@pytest.fixture(scope="module")
def crowded(run_engine: Callable[..., Any]) -> Result:
    """Prompts in chunks of 64 beside running answers, and fewer cache blocks than they need."""
    result = run_engine(
        [LONG, [LONG[0]], SHORT],
        abort_after=6,
        max_num_batched_tokens=64,
        num_gpu_blocks_override=17,
    )
    assert isinstance(result, Result), result
    return result


@pytest.fixture(scope="module")
def compiled(run_engine: Callable[..., Any]) -> Result:
    result = run_engine([SHORT, [LONG[0]], [LONG[0]]], enforce_eager=False)
    assert isinstance(result, Result), result
    return result


def test_every_row_of_chunked_mixed_and_preempted_passes_is_told_once_and_exactly(
    crowded: Result,
) -> None:
    finished = [told for told in crowded.told if told.answer is not None]
    assert len(finished) == 8
    for told in finished:
        assert told.output == told.answer
        assert_exact(told)
    assert crowded.doubled == 0


def test_rows_that_preemption_computed_again_are_counted(crowded: Result) -> None:
    assert crowded.counters["capture.recomputed_tokens"] > 0


def test_tokens_out_of_the_prefix_cache_are_counted_as_cached(crowded: Result) -> None:
    again = crowded.one("4")
    assert again.cached >= 32
    assert again.cached % 32 == 0


def test_an_aborted_request_ends(crowded: Result) -> None:
    aborted = crowded.one("aborted")
    assert aborted.end == 1
    assert aborted.positions


def test_nothing_fails_and_nothing_is_dropped(crowded: Result, compiled: Result) -> None:
    for result in (crowded, compiled):
        bad = [n for n in result.counters if n.startswith(("failed", "dropped", "blind"))]
        assert bad == []
        assert result.closed


def test_a_compiled_engine_tells_every_row_exactly(compiled: Result) -> None:
    assert len(compiled.told) == 5
    for told in compiled.told:
        assert told.output == told.answer
        assert_exact(told)
    assert compiled.told[-1].cached > 0


def test_auxiliary_outputs_give_the_same_rows(run_engine: Callable[..., Any]) -> None:
    result = run_engine([SHORT], "capture: {min_position: 0}\nvllm: {tap: aux}\n")
    assert isinstance(result, Result), result
    for told in result.told:
        assert_exact(told)


def test_forward_hooks_give_the_same_rows_in_an_eager_engine(
    run_engine: Callable[..., Any],
) -> None:
    result = run_engine([SHORT], "capture: {min_position: 0}\nvllm: {tap: hooks}\n")
    assert isinstance(result, Result), result
    for told in result.told:
        assert_exact(told)


def test_hooks_that_the_compiled_graph_leaves_out_are_refused(
    run_engine: Callable[..., Any],
) -> None:
    result = run_engine([SHORT], "vllm: {tap: hooks}\n", plain_hook=True, enforce_eager=False)
    assert isinstance(result, str)
    assert "were not captured by hooks; the compiled graph does not reach it" in result


def test_an_engine_that_may_serve_unmonitored_does_and_says_so(
    run_engine: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    alerts = tmp_path_factory.mktemp("alerts") / "alerts.jsonl"
    result = run_engine(
        [SHORT],
        f"capture: {{on_failure: serve}}\nvllm: {{tap: hooks}}\n"
        f"alert: {{sinks: [{{jsonl: {alerts}}}]}}\n",
        plain_hook=True,
        enforce_eager=False,
    )
    assert isinstance(result, Result), result
    assert result.told == []
    assert "monitor_blind" in alerts.read_text()


def test_speculative_decoding_is_refused_with_the_reason(run_engine: Callable[..., Any]) -> None:
    result = run_engine(
        [SHORT],
        speculative_config={"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3},
    )
    assert isinstance(result, str)
    assert "rows of rejected draft tokens" in result


def test_an_answer_that_a_rule_stops_ends_early_and_its_neighbours_do_not(
    run_engine: Callable[..., Any],
) -> None:
    result = run_engine([SHORT], stop_at_rows=25)
    assert isinstance(result, Result), result
    ended = {told.request_id[0]: told.stopped for told in result.told}
    assert ended == {"0": None, "1": True, "2": None}
    stopped = result.one("1")
    assert stopped.output == stopped.answer
    assert len(stopped.output) < 24
    for told in result.told:
        assert_exact(told)
