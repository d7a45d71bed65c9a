"""The whole monitor over continuous batching, and over a decode loop of one's own."""

from __future__ import annotations

from pathlib import Path

import torch
from monitor_parts import D_MODEL, monitor, prompt, target, tokenizer
from transformers import ContinuousBatchingConfig, GenerationConfig

from nae_monitor.records import VerdictState
from nae_monitor.verdicts import is_balanced


def test_a_watched_model_is_monitored_in_continuous_batching(tmp_path: Path) -> None:
    model, watched = target(), monitor(tmp_path)
    prompts = [
        prompt()["input_ids"][0].tolist(),
        prompt("other plain words")["input_ids"][0].tolist(),
    ]
    with watched.watch(model, tokenizer()), watched.request("r"):
        model.generate_batch(
            prompts,
            generation_config=GenerationConfig(max_new_tokens=6, do_sample=False),
            continuous_batching_config=ContinuousBatchingConfig(
                max_batch_tokens=16, num_blocks=32, page_size=8
            ),
        )
    verdicts = [watched.verdict(f"r#{index}", wait_s=60.0) for index in range(2)]
    watched.close()
    for verdict, ids in zip(verdicts, prompts, strict=True):
        assert verdict.state is not VerdictState.UNDECIDED
        assert verdict.coverage.seen_tokens == len(ids) + 5
        assert verdict.coverage.judged_tokens > 0
        assert is_balanced(verdict.coverage)


def test_a_loop_of_ones_own_is_monitored_by_four_calls(tmp_path: Path) -> None:
    watched = monitor(tmp_path)
    tap = watched.tap(tokenizer())
    ids = prompt()["input_ids"][0].tolist()
    with watched.request("r"):
        name = tap.start(ids)
    tap.rows(name, 0, torch.randn(len(ids), D_MODEL))
    tap.tokens(name, [5, 6])
    tap.rows(name, len(ids), torch.randn(1, D_MODEL))
    tap.end(name)
    verdict = watched.verdict("r", wait_s=60.0)
    watched.close()
    assert verdict.state is not VerdictState.UNDECIDED
    assert verdict.coverage.seen_tokens == len(ids) + 1
    assert is_balanced(verdict.coverage)


def test_rows_that_a_loop_left_out_leave_the_verdict_undecided(tmp_path: Path) -> None:
    watched = monitor(tmp_path)
    tap = watched.tap(tokenizer())
    ids = prompt()["input_ids"][0].tolist()
    with watched.request("r"):
        name = tap.start(ids)
    tap.end(name)
    verdict = watched.verdict("r", wait_s=60.0)
    watched.close()
    assert verdict.state is VerdictState.UNDECIDED
    assert verdict.coverage.dropped_tokens["not_captured"] == len(ids) - 1
