"""Ending one sequence of a running generate, by ids and by captured rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from capture_oracle import EOS, LAYER, PAD, Recorder, check_rows
from transformers import DynamicCache, MaxLengthCriteria, StoppingCriteriaList

from nae_monitor.capture import TransformersTap, request_scope
from nae_monitor.capture.stopping import COMPONENT
from nae_monitor.health import Health
from nae_monitor.settings import CaptureSettings

PROMPT = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10], [11, 12, 13, 14]])
MASK = (PROMPT != PAD).long()
OPTIONS = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": EOS, "pad_token_id": PAD}


class StopAt:
    """Ends the sequences it knows as soon as they have generated so many tokens."""

    def __init__(self, at: dict[str, int]) -> None:
        self.at = at
        self.ended: list[tuple[str, int, int]] = []
        self.fault: Exception | None = None

    def stops(self, request_id: str, length_tokens: int, generated_tokens: int) -> bool:
        if self.fault is not None:
            raise self.fault
        return generated_tokens >= self.at.get(request_id, 10**9)

    def stopped(self, request_id: str, length_tokens: int, generated_tokens: int) -> None:
        self.ended.append((request_id, length_tokens, generated_tokens))


class Watched:
    """The tiny llama under a tap that may stop it."""

    def __init__(self, model: Any, stopping: StopAt | None) -> None:
        self.model, self.recorder, self.health = model, Recorder(), Health()
        self.tap = TransformersTap(
            model,
            None,
            layer=LAYER,
            settings=CaptureSettings(min_position=0),
            listener=self.recorder,
            health=self.health,
            model_name="tiny",
            stopping=stopping,
        )

    def generate(self, *args: Any, **options: Any) -> torch.Tensor:
        with self.tap, request_scope("r"):
            output: torch.Tensor = self.model.generate(*args, **{**OPTIONS, **options})
        return output


@pytest.fixture
def plain(llama_model: Any) -> torch.Tensor:
    """What the model says when nobody stops it; no sequence ends by itself."""
    output: torch.Tensor = llama_model.generate(PROMPT, attention_mask=MASK, **OPTIONS)
    assert output.shape[1] == 16
    assert not (output[:, 4:] == EOS).any()
    return output


def test_one_sequence_ends_and_its_neighbours_say_what_they_would_have_said(
    llama_model: Any, plain: torch.Tensor
) -> None:
    stopping = StopAt({"r#1": 3})
    watched = Watched(llama_model, stopping)
    output = watched.generate(PROMPT, attention_mask=MASK)
    assert output[[0, 2]].equal(plain[[0, 2]])
    assert output[1, :7].equal(plain[1, :7])
    assert (output[1, 7:] == PAD).all()
    assert stopping.ended == [("r#1", 5, 3)]  # two prompt tokens beside its padding


def test_an_ended_sequence_has_no_more_rows_and_the_others_all_of_theirs(llama_model: Any) -> None:
    watched = Watched(llama_model, StopAt({"r#1": 3}))
    watched.generate(PROMPT, attention_mask=MASK)
    recorder = watched.recorder
    assert len(recorder.completions["r#1"]) == 3
    assert max(recorder.positions("r#1")) <= 4
    assert check_rows(llama_model, recorder) > 30
    assert not [name for name in watched.health.counters() if name.startswith("dropped.")]


def test_the_call_returns_when_every_sequence_was_ended(
    llama_model: Any, plain: torch.Tensor
) -> None:
    stopping = StopAt({"r#0": 2, "r#1": 4, "r#2": 3})
    output = Watched(llama_model, stopping).generate(PROMPT, attention_mask=MASK)
    assert output.shape[1] == 4 + 4
    assert [generated for _, _, generated in stopping.ended] == [2, 3, 4]
    assert output[1].equal(plain[1, :8])


def test_without_an_ending_token_padding_still_follows_the_end(llama_model: Any) -> None:
    watched = Watched(llama_model, StopAt({"r#0": 2}))
    output = watched.generate(PROMPT, attention_mask=MASK, eos_token_id=None)
    assert (output[0, 6:] == PAD).all()
    assert not (output[2, 4:] == PAD).all()
    assert len(watched.recorder.completions["r#0"]) == 2


def test_a_batch_that_cannot_be_padded_is_left_alone_and_counted(
    llama_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_model.generation_config, "eos_token_id", None)
    monkeypatch.setattr(llama_model.generation_config, "pad_token_id", None)
    prompt = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    none = {"eos_token_id": None, "pad_token_id": None}
    watched = Watched(llama_model, StopAt({"r#0": 2}))
    output = watched.generate(prompt, attention_mask=torch.ones_like(prompt), **none)
    assert output.shape[1] == 16
    assert watched.health.counters()["actions.stop_generation.impossible"] == 2


@pytest.mark.parametrize("positional", [True, False])
def test_the_callers_own_criteria_stay_in_force(llama_model: Any, positional: bool) -> None:
    own = StoppingCriteriaList([MaxLengthCriteria(max_length=9)])
    watched = Watched(llama_model, StopAt({"r": 10**6}))
    prompt = PROMPT[:1]
    if positional:
        output = watched.generate(prompt, None, None, own)
    else:
        output = watched.generate(prompt, stopping_criteria=own)
    assert output.shape[1] == 9
    assert len(own) == 1  # the caller's list is not ours to change


def test_a_failing_brake_stops_nothing_and_is_counted(
    llama_model: Any, plain: torch.Tensor
) -> None:
    stopping = StopAt({"r#0": 1})
    stopping.fault = RuntimeError("on purpose")
    watched = Watched(llama_model, stopping)
    assert watched.generate(PROMPT, attention_mask=MASK).equal(plain)
    assert watched.health.counters()[f"failed.{COMPONENT}.RuntimeError"] == 5
    assert watched.health.is_open(COMPONENT)


def test_a_stopped_turn_can_be_carried_on_from_its_cache(llama_model: Any) -> None:
    stopping = StopAt({"r": 3})
    watched, cache = Watched(llama_model, stopping), DynamicCache()
    with watched.tap, request_scope("r"):
        first = llama_model.generate(PROMPT[:1], past_key_values=cache, **OPTIONS)
        stopping.at = {"r": 5}
        more = torch.cat([first, torch.tensor([[20, 21]])], dim=1)
        second = llama_model.generate(more, past_key_values=cache, **OPTIONS)
    assert first.shape[1] == 4 + 3
    assert second.shape[1] == more.shape[1] + 5
    assert stopping.ended == [("r", 7, 3), ("r", more.shape[1] + 5, 5)]
    assert watched.recorder.positions("r") == list(range(second.shape[1] - 1))
