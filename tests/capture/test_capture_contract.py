"""The contract of taps: ours keep it, and each way of breaking it is named."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from capture_oracle import EOS, LAYER, PAD, Recorder, left_padded, make, visible
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig

from nae_monitor.capture import Tap, TransformersTap, request_scope
from nae_monitor.health import Health
from nae_monitor.settings import CaptureSettings
from nae_monitor.testing import tap_contract

NEW_TOKENS = 5
Tokens = list[list[int]]


class Stack:
    """What the adapters below share: a model, and its hidden states as the reference."""

    def __init__(self) -> None:
        self.model = make("llama")

    def hidden_states(self, token_ids: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            ids = torch.tensor([list(token_ids)])
            states = self.model(ids, output_hidden_states=True, use_cache=False).hidden_states
        return states[LAYER][0]


class Generate(Stack):
    """transformers' ``generate`` under our tap."""

    def attach(self, listener: Any) -> None:
        self.tap = TransformersTap(
            self.model,
            None,
            layer=LAYER,
            settings=CaptureSettings(min_position=0),
            listener=listener,
            health=Health(),
            model_name="tiny",
        ).attach()

    def detach(self) -> None:
        self.tap.detach()

    def generate(self, prompts: Sequence[Sequence[int]]) -> Tokens:
        inputs = left_padded([list(p) for p in prompts])
        output = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        width = inputs["input_ids"].shape[1]
        return [visible(row, width) for row in output]


class ContinuousBatch(Generate):
    """transformers' continuous batching under our tap."""

    def generate(self, prompts: Sequence[Sequence[int]]) -> Tokens:
        output = self.model.generate_batch(
            [list(p) for p in prompts],
            generation_config=GenerationConfig(
                max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=EOS, pad_token_id=PAD
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                max_batch_tokens=16, num_blocks=32, page_size=8
            ),
        )
        return [result.generated_tokens for result in output.values()]


class HandWritten(Stack):
    """A decode loop of its own that calls :class:`Tap`. Subclasses break one thing each."""

    def __init__(self) -> None:
        super().__init__()
        self.tap: Tap | None = None
        self.health = Health()

    def attach(self, listener: Any) -> None:
        self.tap = Tap(
            layer=LAYER,
            settings=CaptureSettings(min_position=0),
            listener=listener,
            health=self.health,
            model_name="tiny",
        )

    def detach(self) -> None:
        self.tap = None

    def generate(self, prompts: Sequence[Sequence[int]]) -> Tokens:
        return [self.complete(list(prompt)) for prompt in prompts]

    def complete(self, prompt: list[int]) -> list[int]:
        cache, sequence, position = DynamicCache(), list(prompt), 0
        name = self.tap.start(prompt) if self.tap else ""
        try:
            while len(sequence) < len(prompt) + NEW_TOKENS and sequence[-1] != EOS:
                with torch.no_grad():
                    output = self.model(
                        torch.tensor([sequence[position:]]),
                        past_key_values=cache,
                        output_hidden_states=True,
                    )
                if self.tap:
                    self.tell(name, position, output.hidden_states[LAYER][0])
                position = len(sequence)
                sequence.append(self.pick(output.logits[0, -1]))
                if self.tap:
                    self.tap.tokens(name, sequence[-1:])
        finally:
            if self.tap:
                self.finish(name)
        return sequence[len(prompt) :]

    def tell(self, name: str, position: int, vectors: torch.Tensor) -> None:
        assert self.tap is not None
        self.tap.rows(name, position, vectors)

    def pick(self, logits: torch.Tensor) -> int:
        return int(logits.argmax())

    def finish(self, name: str) -> None:
        assert self.tap is not None
        self.tap.end(name)


class Direct(HandWritten):
    """Calls the listener itself through a lax tap, as a careless third party would."""

    def attach(self, listener: Any) -> None:
        super().attach(listener)
        self.listener = listener

    def repeat(self, name: str, position: int, vectors: torch.Tensor) -> None:
        """Tell rows a second time, behind the tap's own care."""
        assert self.tap is not None
        sequence = self.tap._open[name]
        before, sequence.next_position = sequence.next_position, position
        self.tap.rows(name, position, vectors)
        sequence.next_position = before


class LosesARow(HandWritten):
    def tell(self, name: str, position: int, vectors: torch.Tensor) -> None:
        if position == 0:
            super().tell(name, 1, vectors[1:])
        else:
            super().tell(name, position, vectors)


class RepeatsARow(Direct):
    def tell(self, name: str, position: int, vectors: torch.Tensor) -> None:
        super().tell(name, position, vectors)
        if position == 0:
            self.repeat(name, 1, vectors[1:2])


class ShiftsPositions(HandWritten):
    def tell(self, name: str, position: int, vectors: torch.Tensor) -> None:
        super().tell(name, position, vectors.roll(1, dims=0))


class ScalesVectors(HandWritten):
    def tell(self, name: str, position: int, vectors: torch.Tensor) -> None:
        super().tell(name, position, vectors * 1.01)


class LetsCallbacksRaise(Direct):
    def finish(self, name: str) -> None:
        super().finish(name)
        self.listener.tokens(name, ())


class GoesOnAfterTheEnd(Direct):
    def finish(self, name: str) -> None:
        assert self.tap is not None
        sequence = self.tap._open[name]
        super().finish(name)
        with self.tap._health.guard("late"):
            self.listener.tokens(sequence.request.request_id, (1,))


class NeverEnds(HandWritten):
    def finish(self, name: str) -> None:
        pass


class StaysAttached(HandWritten):
    def detach(self) -> None:
        pass


class ChangesOutput(HandWritten):
    def pick(self, logits: torch.Tensor) -> int:
        return int(logits.argmin() if self.tap else logits.argmax())


class WaitsForTheListener(Direct):
    """Goes on only when the listener has taken the rows."""

    gave_up = threading.Event()

    def tell(self, name: str, position: int, vectors: torch.Tensor) -> None:
        assert self.tap is not None
        super().tell(name, position, vectors)
        if self.tap._health.counters().get("dropped.listener_failed"):
            self.gave_up.wait()


BROKEN = {
    LosesARow: "lost_row",
    RepeatsARow: "repeated_row",
    ShiftsPositions: "wrong_position",
    ScalesVectors: "wrong_vector",
    LetsCallbacksRaise: "raises",
    GoesOnAfterTheEnd: "row_after_end",
    NeverEnds: "not_ended",
    StaysAttached: "left_behind",
    ChangesOutput: "changes_output",
}


@pytest.mark.parametrize("adapter", [Generate, ContinuousBatch, HandWritten])
def test_our_own_taps_keep_the_contract(adapter: type[Any]) -> None:
    assert tap_contract(adapter()) == []


@pytest.mark.parametrize(("adapter", "fault"), BROKEN.items())
def test_a_broken_adapter_is_caught_by_name(adapter: type[Any], fault: str) -> None:
    assert fault in {found.name for found in tap_contract(adapter())}


@pytest.fixture
def waiting() -> Iterator[WaitsForTheListener]:
    adapter = WaitsForTheListener()
    yield adapter
    adapter.gave_up.set()


def test_an_adapter_that_waits_for_its_listener_blocks(waiting: WaitsForTheListener) -> None:
    assert {found.name for found in tap_contract(waiting, deadline_s=3.0)} >= {"blocks"}


@pytest.fixture
def by_hand() -> tuple[Tap, Recorder, Health]:
    recorder, health = Recorder(), Health()
    tap = Tap(
        layer=LAYER,
        settings=CaptureSettings(min_position=0),
        listener=recorder,
        health=health,
        model_name="tiny",
    )
    return tap, recorder, health


def test_a_tap_counts_positions_that_were_left_out(by_hand: tuple[Tap, Recorder, Health]) -> None:
    tap, recorder, health = by_hand
    name = tap.start([5, 6, 7, 8], request_id="r")
    tap.rows(name, 1, torch.ones(2, 4))
    tap.end(name)
    tap.end(name)
    assert recorder.finished == ["r"]
    assert recorder.positions("r") == [1, 2]
    assert health.coverage("r").seen_tokens == 3
    assert health.coverage("r").dropped_tokens == {"not_captured": 1}


def test_a_tap_passes_over_positions_that_come_again(
    by_hand: tuple[Tap, Recorder, Health],
) -> None:
    tap, recorder, health = by_hand
    name = tap.start([5, 6, 7, 8], request_id="r", cached_tokens=1)
    tap.rows(name, 1, torch.ones(2, 4))
    tap.rows(name, 0, torch.ones(4, 4))
    assert recorder.positions("r") == [1, 2, 3]
    assert health.coverage("r").cached_tokens == 1
    assert health.coverage("r").seen_tokens == 4


def test_a_tap_starts_a_request_before_it_counts_tokens_of_its_prompt_as_cached(
    by_hand: tuple[Tap, Recorder, Health], monkeypatch: pytest.MonkeyPatch
) -> None:
    tap, recorder, health = by_hand
    counted: list[int] = []  # were they counted before, the prompt's text would pass for unknown

    def started(*_: object) -> None:
        counted.append(health.counted("tokens.cached", "r"))

    monkeypatch.setattr(recorder, "request_started", started)
    tap.start([5, 6, 7, 8], request_id="r", cached_tokens=2)
    assert counted == [0]
    assert health.coverage("r").cached_tokens == 2


def test_rows_whose_tokens_are_unknown_are_dropped(by_hand: tuple[Tap, Recorder, Health]) -> None:
    tap, recorder, health = by_hand
    name = tap.start([5, 6], request_id="r")
    tap.rows(name, 0, torch.ones(3, 4))
    tap.rows("stranger", 0, torch.ones(1, 4))
    assert recorder.rows_of == {}
    assert health.coverage("r").dropped_tokens == {"not_mapped": 3}
    assert health.counters()["dropped.unknown_request"] == 1


def test_a_tap_takes_session_and_tenant_from_the_scope(
    by_hand: tuple[Tap, Recorder, Health],
) -> None:
    tap, recorder, _ = by_hand
    with request_scope("scope", tenant="acme"):
        assert tap.start([5]) == "scope"
        assert tap.start([5], request_id="own") == "own"
    assert recorder.requests["own"].tenant == recorder.requests["scope"].tenant == "acme"
