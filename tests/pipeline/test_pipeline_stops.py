"""What is recorded and told of stops: by which rule, at which token, and what came of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_parts import D_MODEL, LAYER, Bench

from nae_monitor.detect import Decision, RuleSet, load_rules
from nae_monitor.recording import Recording, RecordingWriter
from nae_monitor.records import Phase, Stop, StopOutcome
from nae_monitor.settings import ActionSettings

RULE = """
schema_version: 1
title: The first coordinate
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e00
name: first_coordinate
version: 3
severity: high
scope: {{phase: [prompt, completion], min_token_index: 0}}
detection: {{word: {{field: explanation, regex: ['coordinate 0$']}}, condition: word}}
actions: [{{stop_generation: {{mode: {mode}, within_tokens: 2}}}}]
"""
ENFORCE = ActionSettings(stop_generation="enforce")
MakeBench = Callable[..., Bench]


def rules(tmp_path: Path, mode: str = "enforce") -> RuleSet:
    (tmp_path / "rules.yaml").write_text(RULE.format(mode=mode), encoding="utf-8")
    return load_rules([tmp_path / "rules.yaml"])


def recorded(bench: MakeBench, tmp_path: Path, *, mode: str = "enforce", **options: Any) -> Bench:
    """A bench whose recording is in ``tmp_path / "run"``."""
    writer = RecordingWriter(
        tmp_path / "run", manifest={"layer": LAYER}, d_model=D_MODEL, content="none"
    )
    found = {"rules": rules(tmp_path, mode), "actions": ENFORCE, **options}
    return bench(open_recorder=lambda: writer, **found)


def hit(bench: Bench, request_id: str = "a", position: int = 3) -> None:
    bench.start(request_id)
    bench.rows(request_id, [position], 0, Phase.COMPLETION)
    bench.settled()


def end(bench: Bench, request_id: str = "a") -> StopOutcome | None:
    """End a generation; what its one alert says of the stop."""
    bench.finish(request_id)
    bench.verdict(request_id)
    (alert,) = (a for a in bench.sink.alerts if a.request.request_id == request_id)
    return alert.stop


def written(bench: Bench, tmp_path: Path) -> list[Stop]:
    assert bench.pipeline.close(20.0)
    return list(Recording.open(tmp_path / "run").stops())


def outcomes(stops: list[Stop]) -> list[StopOutcome]:
    return [stop.outcome for stop in stops]


def test_a_stop_is_recorded_when_it_is_ordered_and_when_it_is_done(
    bench: MakeBench, tmp_path: Path
) -> None:
    made = recorded(bench, tmp_path)
    hit(made)
    assert made.pipeline.brake.stops("a", 6, 3)
    made.pipeline.brake.stopped("a", 6, 3)
    assert end(made) is StopOutcome.BLOCKED
    ordered, done = written(made, tmp_path)
    assert outcomes([ordered, done]) == [StopOutcome.REQUESTED, StopOutcome.BLOCKED]
    for stop in (ordered, done):
        assert (stop.rule_name, stop.rule_version) == ("first_coordinate", "3")
        assert (stop.request_id, stop.position, stop.enforced) == ("a", 3, True)
        assert stop.within_tokens == 2
    assert (ordered.behind_tokens, done.behind_tokens) == (None, 2)
    assert 0 < ordered.time_unix_ns <= done.time_unix_ns
    assert made.counter("actions.stop_generation.blocked") == 1


@pytest.mark.parametrize(
    ("mode", "actions", "why"),
    [
        ("enforce", ActionSettings(), "the configuration is in shadow"),
        ("shadow", ENFORCE, "the rule is in shadow"),
    ],
)
def test_a_stop_in_shadow_is_recorded_with_what_holds_it_back(
    bench: MakeBench, tmp_path: Path, mode: str, actions: ActionSettings, why: str
) -> None:
    made = recorded(bench, tmp_path, mode=mode, actions=actions)
    hit(made)
    assert end(made) is StopOutcome.WOULD_BLOCK
    (stop,) = written(made, tmp_path)
    assert (stop.outcome, stop.why) == (StopOutcome.WOULD_BLOCK, why)
    assert stop.enforced is (mode == "enforce")


def test_a_stop_over_the_limit_is_recorded_as_such(bench: MakeBench, tmp_path: Path) -> None:
    limited = ActionSettings(stop_generation="enforce", max_stops_per_min=1)
    made = recorded(bench, tmp_path, actions=limited)
    hit(made, "a")
    hit(made, "b")
    assert end(made, "b") is StopOutcome.WOULD_BLOCK
    made.finish("a")
    made.verdict("a")
    (stop,) = (stop for stop in written(made, tmp_path) if stop.request_id == "b")
    assert stop.why == "more than 1 stops a minute"


def test_a_generation_that_asked_and_ended_by_itself_was_too_fast(
    bench: MakeBench, tmp_path: Path
) -> None:
    made = recorded(bench, tmp_path)
    made.start("a")
    assert not made.pipeline.brake.stops("a", 4, 1)
    made.rows("a", [3], 0, Phase.COMPLETION)
    made.settled()
    assert end(made) is StopOutcome.TOO_LATE
    assert outcomes(written(made, tmp_path)) == [StopOutcome.REQUESTED, StopOutcome.TOO_LATE]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (True, StopOutcome.BLOCKED),
        (False, StopOutcome.REFUSED),
        (None, StopOutcome.UNKNOWN),
    ],
)
def test_a_host_that_ends_generations_itself_says_what_came_of_it(
    bench: MakeBench, tmp_path: Path, answer: bool | None, outcome: StopOutcome
) -> None:
    def host(decision: Decision) -> bool | None:
        assert decision.enforced
        return answer

    made = recorded(bench, tmp_path, on_decision=host)
    hit(made)
    assert made.pipeline.brake.should_stop("a") is (answer is None)  # a refusal withdraws it
    assert end(made) is outcome
    assert outcomes(written(made, tmp_path)) == [StopOutcome.REQUESTED, outcome]
    assert made.counter(f"actions.stop_generation.{outcome}") == 1
    assert made.counter("actions.stopped_sequences") == (1 if answer else 0)


@pytest.mark.parametrize("ended", [True, False])
def test_a_host_may_say_so_later_and_once(bench: MakeBench, tmp_path: Path, ended: bool) -> None:
    made = recorded(bench, tmp_path, on_decision=lambda decision: None)
    brake = made.pipeline.brake
    assert not brake.confirm("a", ended=ended)  # nobody asked for it
    hit(made)
    assert brake.confirm("a", ended=ended)
    assert not brake.confirm("a", ended=not ended)
    assert end(made) is (StopOutcome.BLOCKED if ended else StopOutcome.REFUSED)
    assert not brake.confirm("a", ended=ended)  # the alert is out
    assert made.counter("actions.stop_generation.confirmed_in_vain") == 3


def test_an_answer_to_what_was_only_told_changes_nothing(bench: MakeBench, tmp_path: Path) -> None:
    made = recorded(bench, tmp_path, mode="shadow", on_decision=lambda decision: True)
    hit(made)
    assert end(made) is StopOutcome.WOULD_BLOCK


def test_a_stop_of_a_generation_that_closing_cuts_off_stays_requested(
    bench: MakeBench, tmp_path: Path
) -> None:
    made = recorded(bench, tmp_path)
    hit(made)
    assert outcomes(written(made, tmp_path)) == [StopOutcome.REQUESTED]
    assert [alert.stop for alert in made.sink.alerts] == [StopOutcome.REQUESTED]


def test_what_a_host_did_of_a_generation_that_closing_cuts_off_is_recorded_and_counted(
    bench: MakeBench, tmp_path: Path
) -> None:
    made = recorded(bench, tmp_path, on_decision=lambda decision: True)
    hit(made)
    stops = written(made, tmp_path)
    assert outcomes(stops) == [StopOutcome.REQUESTED, StopOutcome.BLOCKED]
    assert made.counter("actions.stop_generation.blocked") == 1


def two_rules(tmp_path: Path) -> RuleSet:
    """The second matches on the other coordinate and allows one token only."""
    first = RULE.format(mode="enforce")
    second = first.replace("1e00", "1e01").replace("first_", "second_").replace("0$", "1$")
    text = first + "---" + second.replace("within_tokens: 2", "within_tokens: 1")
    (tmp_path / "two.yaml").write_text(text, encoding="utf-8")
    return load_rules([tmp_path / "two.yaml"])


def test_a_refusal_to_one_rule_is_no_answer_to_the_next(bench: MakeBench, tmp_path: Path) -> None:
    answers = {"first_coordinate": False, "second_coordinate": True}
    made = bench(
        rules=two_rules(tmp_path),
        actions=ENFORCE,
        on_decision=lambda decision: answers[decision.rule_name],
    )
    made.start("a")
    for position, coordinate in ((3, 0), (5, 1)):
        made.rows("a", [position], coordinate, Phase.COMPLETION)
        made.settled()
    made.finish("a")
    made.verdict("a")
    assert {alert.rule_name: alert.stop for alert in made.sink.alerts} == {
        "first_coordinate": StopOutcome.REFUSED,
        "second_coordinate": StopOutcome.BLOCKED,
    }
    assert made.counter("actions.stopped_sequences") == 1


def test_rules_that_ask_for_the_same_stop_are_each_held_to_their_own_limit(
    bench: MakeBench, tmp_path: Path
) -> None:
    made = recorded(bench, tmp_path, rules=two_rules(tmp_path))
    made.start("a")
    for position, coordinate in ((4, 0), (3, 1)):
        made.rows("a", [position], coordinate, Phase.COMPLETION)
        made.settled()
    made.pipeline.brake.stopped("a", 6, 3)
    made.finish("a")
    made.verdict("a")
    done = [stop for stop in written(made, tmp_path) if stop.outcome is StopOutcome.BLOCKED]
    assert {stop.rule_name: stop.behind_tokens for stop in done} == {
        "first_coordinate": 1,
        "second_coordinate": 2,
    }
    assert made.counter("actions.stop_generation.over_budget") == 1


def test_a_stop_that_the_recording_refuses_is_counted_and_told(
    bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(RecordingWriter, "write_stops", full)
    made = recorded(bench, tmp_path)
    hit(made)
    assert end(made) is StopOutcome.UNKNOWN
    assert made.counter("record.lost_stops") == 2
    assert not made.pipeline.close(20.0)
    assert Recording.open(tmp_path / "run").stops_lost == 2
