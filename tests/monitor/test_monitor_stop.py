"""A rule ends a real generation of a tiny model; only the decoder is a double."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monitor_parts import (
    D_MODEL,
    LAYER,
    PAD,
    generate,
    monitor,
    prompt,
    prompts,
    target,
    tokenizer,
)

from nae_monitor.detect import Decision
from nae_monitor.records import VerdictState
from nae_monitor.settings import ActionSettings, BudgetSettings, ScreenSettings
from nae_monitor.testing import FakeDecoder

RULE = """
schema_version: 1
title: Half of all completion tokens
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e21
name: stopper
severity: high
scope: {phase: [completion], min_token_index: 0}
detection: {word: {field: explanation, regex: ['coordinate \\d*[02468]$']}, condition: word}
actions: [{stop_generation: {mode: enforce, within_tokens: 1}}]
"""
EVERYTHING = ScreenSettings(
    every_n_tokens=1, random_share=0.0, budget=BudgetSettings(decodes_per_s=1e6, per_request=1000)
)
HELD = ActionSettings(stop_generation="enforce", hold_s=60.0)


@pytest.fixture(scope="module")
def model() -> Any:
    return target()


def coordinates(model: Any, sequence: torch.Tensor) -> list[int]:
    """By token, the coordinate that the decoder would name."""
    with torch.no_grad():
        states = model(sequence[None], output_hidden_states=True).hidden_states[LAYER]
    return [int(row.half().argmax()) for row in states[0]]


def expected_length(model: Any, plain: torch.Tensor, prompt_tokens: int) -> int:
    """The first token after the prompt that the rule hits, and one more."""
    hits = [
        position
        for position, one in enumerate(coordinates(model, plain))
        if position >= prompt_tokens and one % 2 == 0
    ]
    return min([hits[0] + 2, len(plain)]) if hits else len(plain)


def test_a_generation_ends_within_the_tokens_that_the_rule_allows(
    model: Any, tmp_path: Path
) -> None:
    inputs = prompt()
    length = inputs["input_ids"].shape[1]
    plain = generate(model, inputs)[0]
    expected = expected_length(model, plain, length)
    assert length + 1 < expected < len(plain)  # else the model must be made of another seed
    told: list[Decision] = []
    watched = monitor(
        tmp_path, rules=RULE, screen=EVERYTHING, actions=HELD, on_decision=told.append
    )
    with watched.watch(model, tokenizer()), watched.request(request_id="r1"):
        output = generate(model, inputs)[0]
    verdict = watched.verdict("r1", wait_s=120.0)
    assert watched.close(60.0)
    assert output.equal(plain[:expected])
    assert verdict.state is VerdictState.ALERT
    assert [(one.kind, one.enforced) for one in told] == [("stop_generation", True)]
    assert watched.health.counters()["actions.stopped_sequences"] == 1
    (line,) = (tmp_path / "alerts.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["data"]["unmapped"]["nae.stop"] == "blocked"


def test_in_a_batch_each_sequence_ends_by_itself(model: Any, tmp_path: Path) -> None:
    inputs = prompts("some plain words", "learn again and again from words", "plain plain plain")
    width = inputs["input_ids"].shape[1]
    plain = generate(model, inputs)
    watched = monitor(tmp_path, rules=RULE, screen=EVERYTHING, actions=HELD)
    with watched.watch(model, tokenizer()), watched.request(request_id="r"):
        output = generate(model, inputs)
    assert watched.close(60.0)
    lengths = []
    for row, mask, said in zip(plain, inputs["attention_mask"], output, strict=True):
        padding = int((mask == 0).sum())
        end = padding + expected_length(model, row[padding:], int(mask.sum()))
        lengths.append(end)
        assert said[:end].equal(row[:end])
        assert (said[end:] == PAD).all()
    assert output.shape[1] == max(lengths) > width
    assert min(lengths) < plain.shape[1]


def test_nothing_is_stopped_and_no_argument_is_changed_unless_configured(
    model: Any, tmp_path: Path
) -> None:
    inputs = prompt()
    plain = generate(model, inputs)
    watched = monitor(tmp_path, rules=RULE, screen=EVERYTHING)
    seen: list[Any] = []
    original = model._get_stopping_criteria

    def spy(**options: Any) -> Any:
        seen.append(options.get("stopping_criteria"))
        return original(**options)

    model._get_stopping_criteria = spy
    try:
        with watched.watch(model, tokenizer()), watched.request(request_id="r1"):
            output = generate(model, inputs)
    finally:
        del model._get_stopping_criteria
    assert watched.verdict("r1", wait_s=120.0).state is VerdictState.ALERT
    assert watched.close(60.0)
    assert output.equal(plain)
    assert not any(seen)
    assert watched.health.counters()["actions.stop_generation.shadow"] == 1


def test_a_decoder_that_fails_stops_nothing_and_holds_nobody(model: Any, tmp_path: Path) -> None:
    class Failing(FakeDecoder):
        def decode(self, vectors: torch.Tensor, *, seeds: Any = None) -> Any:
            raise RuntimeError("on purpose")

    inputs = prompt()
    plain = generate(model, inputs)
    failing = Failing(D_MODEL, LAYER)
    watched = monitor(tmp_path, rules=RULE, screen=EVERYTHING, actions=HELD, decoder=failing)
    with watched.watch(model, tokenizer()), watched.request(request_id="r1"):
        output = generate(model, inputs)
    assert output.equal(plain)
    assert watched.verdict("r1", wait_s=120.0).state is VerdictState.UNDECIDED
    watched.close(60.0)
