"""What rules' actions do to a pipeline: the judge is real, the test plays the tap."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_parts import D_MODEL, LAYER, Bench, wait_until

from nae_monitor.detect import Decision, RuleSet, load_rules
from nae_monitor.recording import Recording, RecordingWriter
from nae_monitor.records import Phase, SampleReason, StopOutcome
from nae_monitor.screen import SamplingScreen
from nae_monitor.settings import (
    ActionSettings,
    BudgetSettings,
    RecordSettings,
    ScreenSettings,
)

HIT, OTHER = 0, 3  # the coordinate that the rules look for, and one they do not
RULE = """
schema_version: 1
title: The first coordinate
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e0{number}
name: first_coordinate_{number}
severity: high
scope: {{phase: [prompt, completion], min_token_index: 0}}
detection: {{word: {{field: explanation, regex: ['coordinate 0$']}}, condition: word}}
actions: [{actions}]
"""
ENFORCE = ActionSettings(stop_generation="enforce")
STOP = "{stop_generation: {mode: enforce, within_tokens: 2}}"
MakeBench = Callable[..., Bench]


def rules(tmp_path: Path, *actions: str) -> RuleSet:
    texts = [RULE.format(number=n, actions=text) for n, text in enumerate(actions)]
    (tmp_path / "rules.yaml").write_text("---".join(texts), encoding="utf-8")
    return load_rules([tmp_path])


def hit(bench: Bench, request_id: str, position: int = 3) -> None:
    bench.rows(request_id, [position], HIT, Phase.COMPLETION)
    bench.settled()


def finished(bench: Bench, request_id: str) -> list[StopOutcome | None]:
    """End a request; what its alerts say of the stop."""
    bench.finish(request_id)
    bench.verdict(request_id)
    return [alert.stop for alert in bench.sink.alerts if alert.request.request_id == request_id]


def test_a_hit_ends_its_own_sequence_and_no_other(bench: MakeBench, tmp_path: Path) -> None:
    made = bench(rules=rules(tmp_path, STOP), actions=ENFORCE)
    brake = made.pipeline.brake
    for request_id in ("a", "b"):
        made.start(request_id)
    made.rows("b", [3], OTHER, Phase.COMPLETION)
    hit(made, "a")
    assert (brake.stops("a", 5, 2), brake.stops("b", 5, 2)) == (True, False)
    assert (made.pipeline.brake.should_stop("a"), brake.should_stop("b")) == (True, False)
    brake.stopped("a", 5, 2)
    assert not brake.stops("a", 6, 3)
    assert finished(made, "a") == [StopOutcome.BLOCKED]
    assert made.counter("actions.stop_generation") == made.counter("actions.stopped_sequences") == 1


@pytest.mark.parametrize(
    ("mode", "actions"),
    [("enforce", ActionSettings()), ("shadow", ENFORCE)],
    ids=["the configuration", "the rule"],
)
def test_in_shadow_it_is_told_what_would_have_been_ended(
    bench: MakeBench,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    mode: str,
    actions: ActionSettings,
) -> None:
    found = rules(tmp_path, f"{{stop_generation: {{mode: {mode}}}}}")
    made = bench(rules=found, actions=actions)
    made.start("a")
    with caplog.at_level(logging.WARNING, "nae_monitor"):
        hit(made, "a")
    assert not made.pipeline.brake.stops("a", 5, 2)
    assert finished(made, "a") == [StopOutcome.WOULD_BLOCK]
    assert made.counter("actions.stop_generation.shadow") == 1
    assert "'first_coordinate_0' would_block request 'a' at token 3" in caplog.text
    assert "coordinate 0" not in caplog.text  # what was decoded is nobody's log line


def test_a_hit_that_is_judged_after_the_end_came_too_late(bench: MakeBench, tmp_path: Path) -> None:
    made = bench(rules=rules(tmp_path, STOP), actions=ENFORCE)
    made.decoder.released.clear()
    made.start("a")
    made.rows("a", [3], HIT, Phase.COMPLETION)
    made.finish("a")
    made.decoder.released.set()
    made.verdict("a")
    assert [alert.stop for alert in made.sink.alerts] == [StopOutcome.TOO_LATE]
    made.start("a")  # the next turn of the same conversation is not to blame
    assert not made.pipeline.brake.should_stop("a")


def test_each_turn_of_a_conversation_can_be_ended(bench: MakeBench, tmp_path: Path) -> None:
    made = bench(rules=rules(tmp_path, STOP), actions=ENFORCE)
    for turn, first in enumerate((3, 13)):
        made.start("a")
        assert not made.pipeline.brake.should_stop("a")
        hit(made, "a", first)
        assert made.pipeline.brake.stops("a", first + 2, 2)
        made.pipeline.brake.stopped("a", first + 2, 2)
        assert finished(made, "a") == [StopOutcome.BLOCKED] * (turn + 1)


def test_a_stop_later_than_the_rule_allows_is_carried_out_and_counted(
    bench: MakeBench, tmp_path: Path
) -> None:
    made = bench(rules=rules(tmp_path, STOP), actions=ENFORCE)
    made.start("a")
    hit(made, "a", 3)
    assert made.pipeline.brake.stops("a", 20, 17)
    made.pipeline.brake.stopped("a", 20, 17)
    assert made.counter("actions.stop_generation.over_budget") == 1


def test_more_stops_than_the_limit_are_only_told_until_a_minute_is_over(
    bench: MakeBench, tmp_path: Path
) -> None:
    limited = ActionSettings(stop_generation="enforce", max_stops_per_min=1)
    made = bench(rules=rules(tmp_path, STOP), actions=limited)
    stopped = []
    for request_id, wait_s in (("a", 0.0), ("b", 59.0), ("c", 2.0)):
        made.clock.advance(wait_s)
        made.start(request_id)
        hit(made, request_id)
        stopped.append(made.pipeline.brake.should_stop(request_id))
    assert stopped == [True, False, True]
    assert made.counter("actions.stop_generation.over_limit") == 1


class Asking:
    """A generating thread that asks whether to stop."""

    def __init__(self, bench: Bench, length_tokens: int) -> None:
        self.answer: bool | None = None
        self._place = ("a", length_tokens, length_tokens - 3)
        self._brake = bench.pipeline.brake
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.answer = self._brake.stops(*self._place)

    def done(self) -> bool | None:
        self.thread.join(30)
        return self.answer


def behind(bench: MakeBench, tmp_path: Path, **actions: Any) -> Bench:
    """A hit at token 3 that the decoder does not answer yet."""
    found = ActionSettings(stop_generation="enforce", **actions)
    made = bench(rules=rules(tmp_path, STOP, "{stop_generation: {mode: enforce}}"), actions=found)
    made.decoder.released.clear()
    made.start("a")
    made.rows("a", [3], HIT, Phase.COMPLETION)
    return made


def test_generation_never_waits_unless_it_was_configured_to(
    bench: MakeBench, tmp_path: Path
) -> None:
    made = behind(bench, tmp_path)
    assert made.pipeline.brake.stops("a", 30, 27) is False


def test_a_held_generation_stops_within_the_tokens_that_the_rule_allows(
    bench: MakeBench, tmp_path: Path
) -> None:
    made = behind(bench, tmp_path, hold_s=30.0)
    assert made.pipeline.brake.stops("a", 5, 2) is False  # one token behind: two are allowed
    asking = Asking(made, 6)
    made.decoder.entered.wait(120)
    assert asking.answer is None
    made.decoder.released.set()
    assert asking.done() is True


def test_a_row_without_a_hit_lets_a_held_generation_go_on(bench: MakeBench, tmp_path: Path) -> None:
    made = behind(bench, tmp_path, hold_s=30.0)
    made.decoder.faults.append(RuntimeError("on purpose"))  # dropped, so nothing will be found
    asking = Asking(made, 6)
    made.decoder.released.set()
    assert asking.done() is False


def test_holding_ends_with_its_time_and_with_the_monitor(bench: MakeBench, tmp_path: Path) -> None:
    made = behind(bench, tmp_path, hold_s=0.02)
    assert made.pipeline.brake.stops("a", 6, 3) is False
    assert made.counter("actions.stop_generation.unheld") == 1
    other = behind(bench, tmp_path, hold_s=60.0)
    asking = Asking(other, 6)
    other.pipeline.close(0.0)
    assert asking.done() is False


def test_who_asked_is_told_what_was_carried_out(bench: MakeBench, tmp_path: Path) -> None:
    told: list[Decision] = []
    every = STOP + ", {raise_sampling: {rate: 1.0}}, capture"
    made = bench(rules=rules(tmp_path, every), on_decision=told.append)
    made.start("a")
    hit(made, "a")
    assert {(one.kind, one.enforced) for one in told} == {
        ("stop_generation", False), ("raise_sampling", False), ("capture", False),
    }  # fmt: skip
    assert made.counter("actions.raise_sampling.shadow") == 1


def test_a_failing_callback_keeps_no_action_from_its_work(bench: MakeBench, tmp_path: Path) -> None:
    def fail(decision: Decision) -> None:
        raise RuntimeError("on purpose")

    made = bench(rules=rules(tmp_path, STOP), actions=ENFORCE, on_decision=fail)
    made.start("a")
    hit(made, "a")
    assert made.pipeline.brake.should_stop("a")
    assert made.counter("failed.actions.RuntimeError") == 1


@pytest.mark.parametrize(("scope", "session_sees"), [("request", 0), ("session", 4)])
def test_a_hit_raises_the_sampling_of_what_follows_in_its_scope(
    bench: MakeBench, tmp_path: Path, scope: str, session_sees: int
) -> None:
    reasons: list[tuple[str, SampleReason]] = []
    sparse = ScreenSettings(every_n_tokens=1000, random_share=0.0, budget=BudgetSettings(1e6, 1))
    action = f"{{raise_sampling: {{rate: 1.0, scope: {scope}, tokens: 4}}}}"
    made = bench(
        rules=rules(tmp_path, action),
        actions=ActionSettings(raise_sampling=True),
        screen=SamplingScreen(sparse, raised_decodes_per_s=1e6),
        observer=lambda a, d, f: reasons.append((a.request.request_id, a.reason)),
    )
    made.start("a", session_id="s")
    made.start("b", session_id="s")
    made.start("c", session_id="t")
    made.rows("a", [0], HIT)
    made.settled()
    assert reasons == [("a", SampleReason.EVERY_N)]
    order = "abc" if scope == "request" else "bac"
    for request_id in order:
        made.rows(request_id, range(1, 11), OTHER)
    for request_id in order:
        made.finish(request_id)
        made.verdict(request_id)
    assert reasons[1:].count(("b", SampleReason.RAISED)) == session_sees
    assert len(reasons[1:]) == 4


@pytest.mark.parametrize("captures", [True, False])
def test_vectors_are_kept_where_a_rule_asks_for_them(
    bench: MakeBench, tmp_path: Path, captures: bool
) -> None:
    writer = RecordingWriter(
        tmp_path / "run", manifest={"layer": LAYER}, d_model=D_MODEL, content="full"
    )
    made = bench(
        rules=rules(tmp_path, "capture" if captures else "alert"),
        open_recorder=lambda: writer,
        record=RecordSettings(str(tmp_path), keep="captured"),
    )
    made.one("b", [0, 1], coordinate=OTHER)
    made.start("a")
    made.rows("a", [0, 1], OTHER)
    made.rows("a", [2], HIT)
    made.rows("a", [3, 4], OTHER)
    made.finish("a")
    made.verdict("a")
    assert made.pipeline.close(20.0)
    kept = Recording.open(tmp_path / "run")
    rows = [(row.activation.request.request_id, row.activation.position) for row in rows_of(kept)]
    assert rows == ([("a", position) for position in range(5)] if captures else [])
    assert len(list(kept.findings())) == 1
    assert {request.request.request_id for request in kept.requests()} == {"a", "b"}


def rows_of(recording: Recording) -> list[Any]:
    return sorted(recording.activations(), key=lambda row: row.activation.position)


def test_settled_rows_leave_nothing_to_wait_for(bench: MakeBench, tmp_path: Path) -> None:
    made = behind(bench, tmp_path, hold_s=30.0)
    turn = made.pipeline._requests.turn("a")
    assert turn is not None
    assert turn.unjudged == {3}
    made.decoder.released.set()
    wait_until(lambda: not turn.unjudged)
