"""From the doubles' passes to rows."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm_fakes import (
    D_MODEL,
    EOS,
    Collector,
    FirstRunner,
    Scheduled,
    SecondRunner,
    Step,
    new_request,
    vector,
)

from nae_monitor.errors import UnsupportedError
from nae_monitor.health import Health
from nae_monitor.integrations.engines.handover import Handover
from nae_monitor.integrations.engines.tracker import Tracker
from nae_monitor.integrations.vllm.identity import begun
from nae_monitor.integrations.vllm.passes import check_runner, read_pass
from nae_monitor.settings import CaptureSettings

RUNNERS = [FirstRunner, SecondRunner]


class Engine:
    """A worker's loop over a runner's double."""

    def __init__(self, runner: type, **settings: Any) -> None:
        self.health = Health()
        self.collector = Collector(self.health)
        self.rows = torch.zeros(64, D_MODEL)
        self.runner = runner(self.rows)
        self.tracker = Tracker(
            self.collector,
            self.health,
            CaptureSettings(**{"min_position": 0, **settings}),
            layer=2,
        )
        self.handover = Handover(
            self.tracker, self.rows, lambda _: self.health.count("blind.no_rows")
        )

    def step(self, step: Step, *, writes: bool = True) -> None:
        for request_id in step.finished:
            self.handover.note(lambda r=request_id: self.tracker.finish(r))  # type: ignore[misc]
        for new in step.new:
            self.handover.note(lambda n=new: self.tracker.begin(begun(n, "m")))  # type: ignore[misc]
        self.handover.before_pass()
        if writes:
            self.runner.run(step)
        else:
            kept = self.rows.clone()
            self.runner.run(step)
            self.rows.copy_(kept)
        taken = read_pass(self.runner, step.output)
        if taken is not None:
            self.handover.take(taken)
        self.handover.hand_on()


def expected(prompt: list[int], answer: list[int], first: int = 0) -> list[Any]:
    """Each computed token of a sequence: all but the last."""
    sequence = prompt + answer
    return [
        (p, token, "prompt" if p < len(prompt) else "completion", vector(token, p))
        for p, token in enumerate(sequence[:-1])
        if p >= first
    ]


@pytest.mark.parametrize("runner", RUNNERS)
def test_rows_of_a_mixed_pass_go_to_their_requests(runner: type) -> None:
    engine = Engine(runner)
    new = [new_request("a", [1, 2, 3]), new_request("b", [4, 5])]
    engine.step(Step([Scheduled("a", 0, [1, 2, 3])], new[:1]))
    engine.step(Step([Scheduled("b", 0, [4, 5]), Scheduled("a", 3, [6])], new[1:]))
    engine.tracker.sampled("a", 7)
    engine.step(Step(finished={"a"}))
    assert engine.collector.told["a"] == expected([1, 2, 3], [6, 7])
    assert engine.collector.told["b"] == expected([4, 5], [8])
    assert engine.collector.outputs["a"] == [6, 7]
    assert engine.collector.ended == ["a"]


def some_sequences(dice: random.Random) -> dict[str, tuple[list[int], list[int]]]:
    """A few prompts with their answers."""
    return {
        name: (
            [dice.randint(1, 50) for _ in range(dice.randint(1, 8))],
            [dice.randint(1, 50) for _ in range(dice.randint(1, 6))],
        )
        for name in ("a", "b", "c")
    }


@pytest.mark.parametrize("runner", RUNNERS)
@given(seed=st.integers(0, 2**32))
def test_each_computed_token_is_told_once_however_passes_are_cut(runner: type, seed: int) -> None:
    """Requests in chunks, preempted and begun again, with cache hits, in any order."""
    engine, dice = Engine(runner), random.Random(seed)
    sequences = some_sequences(dice)
    cached = {name: dice.randint(0, len(prompt) - 1) for name, (prompt, _) in sequences.items()}
    at, begun, going = dict(cached), set[str](), set(sequences)
    while going:
        step = Step()
        for name in dice.sample(sorted(going), dice.randint(1, len(going))):
            prompt, answer = sequences[name]
            known = prompt + answer[:-1]
            if name in begun and dice.random() < 0.2:
                at[name] = dice.randint(0, at[name])  # preempted
            if name not in begun:
                step.new.append(new_request(name, prompt, cached[name]))
                begun.add(name)
            end = dice.randint(at[name], len(known))
            if end > at[name]:
                step.shares.append(Scheduled(name, at[name], known[at[name] : end]))
            at[name] = end
            if end == len(known):
                going.discard(name)
        engine.step(step)
    for name, (_, answer) in sequences.items():
        engine.tracker.sampled(name, answer[-1])
    engine.step(Step(finished=set(sequences)))
    for name, (prompt, answer) in sequences.items():
        assert engine.collector.told[name] == expected(prompt, answer, cached[name])
        assert engine.collector.outputs[name] == answer
        coverage = engine.health.coverage(name)
        assert coverage.cached_tokens == cached[name]
        assert coverage.seen_tokens == len(prompt + answer) - 1


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_pass_after_the_end_of_an_answer_tells_nothing(runner: type) -> None:
    engine = Engine(runner)
    engine.step(
        Step([Scheduled("a", 0, [1, 2])], [new_request("a", [1, 2], stop=frozenset({EOS}))])
    )
    engine.tracker.sampled("a", EOS)
    engine.step(Step([Scheduled("a", 2, [EOS])]))
    engine.tracker.sampled("a", 7)
    engine.step(Step([Scheduled("a", 3, [7])]))
    engine.step(Step(finished={"a"}))
    assert engine.collector.told["a"] == expected([1, 2], [EOS])
    assert engine.collector.outputs["a"] == [EOS]
    assert engine.health.coverage("a").seen_tokens == 2
    assert engine.health.counters()["capture.extra_tokens"] == 2


def test_a_stop_token_inside_the_prompt_ends_nothing() -> None:
    engine = Engine(FirstRunner)
    prompt = [1, EOS, 2]
    engine.step(
        Step([Scheduled("a", 0, prompt)], [new_request("a", prompt, stop=frozenset({EOS}))])
    )
    assert [row[0] for row in engine.collector.told["a"]] == [0, 1, 2]


def test_rows_outside_the_settings_are_counted_as_excluded() -> None:
    engine = Engine(FirstRunner, min_position=2, phases=("completion",))
    engine.step(Step([Scheduled("a", 0, [1, 2, 3])], [new_request("a", [1, 2, 3])]))
    engine.step(Step([Scheduled("a", 3, [4])]))
    assert [row[0] for row in engine.collector.told["a"]] == [3]
    coverage = engine.health.coverage("a")
    assert (coverage.seen_tokens, coverage.excluded_tokens) == (4, 3)


def test_a_pass_that_wrote_nothing_is_counted_and_its_old_rows_are_not_told() -> None:
    engine = Engine(FirstRunner)
    engine.step(Step([Scheduled("a", 0, [1, 2, 3])], [new_request("a", [1, 2, 3])]))
    engine.step(Step([Scheduled("a", 3, [4])]), writes=False)
    engine.step(Step([Scheduled("a", 4, [5])]))
    assert [row[0] for row in engine.collector.told["a"]] == [0, 1, 2, 4]
    assert engine.health.coverage("a").dropped_tokens == {"not_captured": 1}
    assert engine.health.counters()["blind.no_rows"] == 1


def test_rows_of_a_request_that_never_began_are_counted() -> None:
    engine = Engine(FirstRunner)
    engine.step(Step([Scheduled("ghost", 0, [1, 2])]))
    assert engine.health.counters()["dropped.unknown_request"] == 2


def test_rows_of_a_prompt_without_token_ids_are_counted_and_not_told() -> None:
    engine = Engine(FirstRunner)
    embedded = new_request("a", [0, 0])
    embedded.prompt_token_ids = None
    engine.step(Step([Scheduled("a", 0, [0, 0])], [embedded]))
    engine.step(Step(finished={"a"}))
    assert engine.collector.told["a"] == []
    assert engine.health.coverage("a").dropped_tokens == {"no_token_ids": 2}
    assert engine.collector.ended == ["a"]


def test_an_id_that_comes_again_in_the_step_its_first_bearer_ends_is_another_request() -> None:
    engine = Engine(FirstRunner)
    engine.step(Step([Scheduled("a", 0, [1, 2])], [new_request("a", [1, 2])]))
    engine.step(Step([Scheduled("a", 0, [3, 4])], [new_request("a", [3, 4])], {"a"}))
    assert engine.collector.ended == ["a"]
    assert engine.collector.prompts["a"] == (3, 4)
    assert [row[1] for row in engine.collector.told["a"]] == [3, 4]


def test_a_runner_of_no_known_kind_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no model runner"):
        check_runner(object())
