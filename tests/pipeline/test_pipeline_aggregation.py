"""Aggregation and suppression through the whole pipeline, by rules as an author writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline_parts import D_MODEL, LAYER, Bench, wait_until

from nae_monitor.detect import RuleSet, load_rules
from nae_monitor.recording import Recording, RecordingWriter
from nae_monitor.records import Alert, FindingState, Phase, VerdictState
from nae_monitor.settings import ActionSettings, RecordSettings

HIT, OTHER = 0, 3
SINGLE = """
schema_version: 1
title: The first coordinate
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e11
name: single
severity: low
scope: {phase: [prompt, completion], min_token_index: 0}
detection: {word: {field: explanation, regex: ['coordinate 0$']}, condition: word}
"""
SUSTAINED = """---
schema_version: 1
title: The first coordinate, again and again
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e12
name: sustained
severity: critical
aggregation:
  type: event_count
  rules: [single]
  group_by: [request_id]
  window: {tokens: 20}
  condition: {gte: 3}
actions: [{alert: {routes: [oncall]}}, {stop_generation: {mode: enforce}}]
"""
SESSION = """---
schema_version: 1
title: The first coordinate over a whole conversation
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e13
name: conversation
severity: medium
aggregation:
  type: event_count
  rules: [single]
  group_by: [session_id]
  window: {time: 1h}
  condition: {gte: 2}
"""
QUIET = "suppress: {group_by: [session_id], for: 10m}\n"
MakeBench = Callable[..., Bench]


def rules(tmp_path: Path, *texts: str) -> RuleSet:
    (tmp_path / "rules.yaml").write_text("".join(texts), encoding="utf-8")
    return load_rules([tmp_path])


def request(bench: Bench, request_id: str, hits: list[int], session_id: str | None = None) -> None:
    """One whole request with hits at these positions of its completion."""
    bench.start(request_id, session_id=session_id)
    for position in range(3, 33, 3):
        coordinate = HIT if position in hits else OTHER
        bench.rows(request_id, [position], coordinate, Phase.COMPLETION)
    bench.finish(request_id)
    assert bench.verdict(request_id).state is not VerdictState.UNDECIDED


def alerts(bench: Bench, rule_name: str) -> list[Alert]:
    return [alert for alert in bench.sink.alerts if alert.rule_name == rule_name]


def test_hits_close_together_are_an_alert_of_the_aggregation_rule_with_its_route(
    bench: MakeBench, tmp_path: Path
) -> None:
    made = bench(rules=rules(tmp_path, SINGLE, SUSTAINED))
    request(made, "close", [6, 12, 18])
    request(made, "apart", [3, 15, 30])
    (alert,) = alerts(made, "sustained")
    assert (alert.request.request_id, alert.first_position) == ("close", 18)
    assert alert.routes == ("oncall",)
    assert [a.count for a in alerts(made, "single")] == [3, 3]
    found = made.verdict("close").findings
    assert [f.rule_name for f in found if f.state is FindingState.MATCH].count("sustained") == 1


def test_turns_of_a_request_in_one_batch_are_told_apart(bench: MakeBench, tmp_path: Path) -> None:
    made = bench(rules=rules(tmp_path, SINGLE))
    made.start("other")
    made.decoder.released.clear()
    made.rows("other", [3], OTHER, Phase.COMPLETION)  # the turns queue up behind it
    made.decoder.entered.wait(20)
    for _ in range(2):
        made.start("a")
        made.rows("a", [3], HIT, Phase.COMPLETION)
        made.finish("a")
    made.decoder.released.set()
    made.verdict("a")
    wait_until(lambda: len(made.sink.alerts) == 2)
    assert [alert.count for alert in made.sink.alerts] == [1, 1]


def test_an_aggregation_rule_ends_the_sequence_that_filled_its_window(
    bench: MakeBench, tmp_path: Path
) -> None:
    enforce = ActionSettings(stop_generation="enforce")
    made = bench(rules=rules(tmp_path, SINGLE, SUSTAINED), actions=enforce)
    made.start("a")
    stopped = []
    for position in (4, 5, 6):
        made.rows("a", [position], HIT, Phase.COMPLETION)
        made.settled()
        stopped.append(made.pipeline.brake.should_stop("a"))
    assert stopped == [False, False, True]


def test_a_conversation_is_counted_over_its_requests_and_no_other(
    bench: MakeBench, tmp_path: Path
) -> None:
    made = bench(rules=rules(tmp_path, SINGLE, SESSION))
    for request_id, session_id in (("a", "s"), ("b", "t"), ("c", "s")):
        request(made, request_id, [6], session_id)
    assert [alert.request.request_id for alert in alerts(made, "conversation")] == ["c"]


def test_repeats_of_a_conversation_are_held_back_and_told_by_nobody_elses_alert(
    bench: MakeBench, tmp_path: Path
) -> None:
    made = bench(rules=rules(tmp_path, SINGLE, QUIET))
    for request_id, session_id in (("a", "s"), ("b", "s"), ("c", "t"), ("d", "s")):
        request(made, request_id, [6, 9], session_id)
        assert made.verdict(request_id).state is VerdictState.ALERT  # held back is not unseen
    sent = [(a.request.request_id, a.count, a.held_back) for a in alerts(made, "single")]
    assert sent == [("a", 2, 0), ("c", 2, 0)]
    assert made.counter("alerts.held_back") == 2
    assert made.pipeline.close(20.0)
    assert made.counter("alerts.findings_held_back_untold") == 4


def test_an_alert_that_no_sink_takes_silences_none_that_one_would(
    bench: MakeBench, tmp_path: Path
) -> None:
    made = bench(rules=rules(tmp_path, SINGLE, QUIET))
    made.sink.takes = lambda alert: alert.request.request_id != "a"
    for request_id in ("a", "b", "c"):
        request(made, request_id, [6], "s")
    sent = [alert.request.request_id for alert in alerts(made, "single")]
    assert sent == ["a", "b"]  # "a" is handed over to be counted; it opened no quiet period
    assert made.counter("alerts.emitted") == made.counter("alerts.held_back") == 1


def test_no_finding_is_lost_between_alerts_counters_and_recording(
    bench: MakeBench, tmp_path: Path
) -> None:
    writer = RecordingWriter(
        tmp_path / "run", manifest={"layer": LAYER}, d_model=D_MODEL, content="full"
    )
    made = bench(
        rules=rules(tmp_path, SINGLE, "suppress: {max_alerts: 2/1h}\n", SUSTAINED, SESSION),
        open_recorder=lambda: writer,
        record=RecordSettings(str(tmp_path)),
    )
    for number in range(6):
        request(made, f"r{number}", [6, 9, 12], f"s{number % 2}")
    assert made.pipeline.close(20.0)
    found = list(Recording.open(tmp_path / "run").findings())
    told = sum(alert.count + alert.held_back for alert in made.sink.alerts)
    untold = made.counter("alerts.findings_held_back_untold")
    assert len([f for f in found if f.state is FindingState.MATCH]) == told + untold
    assert len(alerts(made, "single")) == 2
    assert untold == 3 * 4
    assert made.counter("dropped.internal") == made.counter("failed.suppression.Exception") == 0
