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
from nae_monitor.pipeline.requests import Requests
from nae_monitor.records import Request, Transcript
from nae_monitor.settings import (
    ActionSettings,
    CaptureSettings,
    PolicySettings,
    Settings,
    TargetSettings,
)
from nae_monitor.token_text import TokenText

RUNNERS = [FirstRunner, SecondRunner]


class Engine:
    """A worker's loop over a runner's double."""

    def __init__(
        self, runner: type, *, rows: int = 64, stops: bool = False, **settings: Any
    ) -> None:
        capture = CaptureSettings(**{"min_position": 0, "gather_steps": 1, **settings})
        self.health = Health()
        self.collector = Collector(self.health)
        self.rows = torch.zeros(rows, D_MODEL)
        self.runner = runner(self.rows)
        self.tracker = Tracker(self.collector, self.health, capture, layer=2)
        self.handover = Handover(
            self.tracker,
            self.rows,
            lambda _: self.health.count("blind.no_rows"),
            Settings(
                target=TargetSettings("m"),
                capture=capture,
                actions=ActionSettings("enforce" if stops else "shadow"),
            ),
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
        if self.handover.is_due:
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
    """Requests in chunks, preempted and begun again, with cache hits, gathered, in any order."""
    dice = random.Random(seed)
    engine = Engine(runner, gather_steps=dice.randint(1, 5), gather_s=10.0)
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


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return "".join(chr(97 + token_id) for token_id in token_ids)


@pytest.mark.parametrize("cached", [0, 2])
def test_the_text_of_a_prompt_is_known_also_where_a_prefix_cache_held_some_of_it(
    cached: int,
) -> None:
    engine = Engine(FirstRunner)
    requests = Requests(engine.health, PolicySettings())

    def start(request: Request, prompt_token_ids: tuple[int, ...]) -> None:
        requests.started(request, prompt_token_ids, TokenText(Letters()))

    engine.collector.request_started = start  # type: ignore[method-assign]
    engine.tracker.begin(begun(new_request("a", [0, 1, 2], cached), "m"))
    turn = requests.turn("a")
    assert turn is not None
    turn.output_ids.append(3)
    assert turn.transcript(3) == Transcript("abc", "d")
    assert engine.health.coverage("a").cached_tokens == cached


def test_cached_tokens_of_a_request_whose_start_failed_are_counted_as_cached() -> None:
    engine = Engine(FirstRunner)

    def fail(request: Request, prompt_token_ids: tuple[int, ...]) -> None:
        raise RuntimeError("a listener's own fault")

    engine.collector.request_started = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        engine.tracker.begin(begun(new_request("a", [0, 1, 2], 2), "m"))
    engine.step(Step([Scheduled("a", 2, [2])]))
    coverage = engine.health.coverage("a")
    assert (coverage.seen_tokens, coverage.cached_tokens) == (3, 2)
    assert coverage.dropped_tokens == {"listener_failed": 1}


def begin_two(engine: Engine) -> None:
    """A pass over the prompts of a and b."""
    new = [new_request("a", [1, 2, 3]), new_request("b", [4, 5])]
    engine.step(Step([Scheduled("a", 0, [1, 2, 3]), Scheduled("b", 0, [4, 5])], new))


def test_passes_are_told_together_each_request_in_a_row() -> None:
    engine = Engine(FirstRunner, gather_steps=3, gather_s=10.0)
    batches: list[list[tuple[str, int]]] = []
    tell = engine.collector.rows

    def rows(batch: Any) -> None:
        names = [batch.requests[index].request_id for index in batch.request_index]
        batches.append(list(zip(names, batch.positions, strict=True)))
        tell(batch)

    engine.collector.rows = rows  # type: ignore[method-assign]
    begin_two(engine)
    assert len(batches) == 1  # with a beginning, everything is told
    for step in range(3):
        engine.step(Step([Scheduled("b", 2 + step, [20 + step]), Scheduled("a", 3 + step, [9])]))
        assert len(batches) == 1 + (step == 2)
    assert batches[1] == [("b", 2), ("b", 3), ("b", 4), ("a", 3), ("a", 4), ("a", 5)]
    engine.step(Step([Scheduled("b", 5, [23])]))
    engine.step(Step(finished={"b"}))
    assert batches[2] == [("b", 5)]
    assert engine.collector.told["b"] == expected([4, 5], [20, 21, 22, 23, 24])
    assert engine.collector.told["a"] == expected([1, 2, 3], [9, 9, 9, 9])


@pytest.mark.parametrize("settings", [{"gather_s": 0.0}, {"gather_s": 10.0, "stops": True}])
def test_passes_are_told_one_by_one_where_they_may_not_wait(settings: dict[str, Any]) -> None:
    engine = Engine(FirstRunner, gather_steps=8, **settings)
    begin_two(engine)
    for step in range(3):
        engine.step(Step([Scheduled("a", 3 + step, [9])]))
        assert [row[0] for row in engine.collector.told["a"]] == list(range(4 + step))


def test_a_great_many_gathered_rows_are_told_at_once() -> None:
    engine = Engine(FirstRunner, rows=1200, gather_steps=8, gather_s=10.0)
    prompt = [7] * 1500
    engine.step(Step([Scheduled("a", 0, prompt[:10])], [new_request("a", prompt)]))
    engine.step(Step([Scheduled("a", 10, prompt[10:1110])]))
    assert len(engine.collector.told["a"]) == 1110


def test_a_pass_that_wrote_nothing_among_gathered_ones_costs_its_own_rows_alone() -> None:
    engine = Engine(FirstRunner, gather_steps=4, gather_s=10.0)
    begin_two(engine)
    for step in range(4):
        engine.step(Step([Scheduled("a", 3 + step, [30 + step])]), writes=step != 1)
    assert engine.collector.told["a"] == [
        row for row in expected([1, 2, 3], [30, 31, 32, 33, 34]) if row[0] != 4
    ]
    assert engine.health.coverage("a").dropped_tokens == {"not_captured": 1}
    assert engine.health.counters()["blind.no_rows"] == 1


def test_gathered_rows_of_a_failing_listener_are_counted_and_those_behind_are_told() -> None:
    engine = Engine(FirstRunner, gather_steps=2, gather_s=10.0)
    begin_two(engine)
    engine.collector.faults.add("rows")
    engine.step(Step([Scheduled("a", 3, [30]), Scheduled("b", 2, [40])]))
    with pytest.raises(RuntimeError):
        engine.step(Step([Scheduled("a", 4, [31]), Scheduled("b", 3, [41])]))
    engine.collector.faults.clear()
    engine.step(Step([Scheduled("a", 5, [32])]))
    engine.step(Step(finished={"a", "b"}))
    assert [row[0] for row in engine.collector.told["a"]] == [0, 1, 2, 5]
    for name, lost in (("a", 2), ("b", 2)):
        assert engine.health.coverage(name).dropped_tokens == {"listener_failed": lost}
    assert sorted(engine.collector.ended) == ["a", "b"]


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
