from pathlib import Path
from typing import Any

import pytest
from detect_support import SIMPLE, rules_of

from nae_monitor.detect.decisions import Decider
from nae_monitor.errors import RuleError
from nae_monitor.records import Finding, FindingState, Severity

ACTIONS = """actions:
  - raise_sampling: {rate: 0.5, scope: session, tokens: 64}
  - stop_generation: {mode: enforce, min_fidelity: 0.7, min_hits: 2}
  - capture
"""


def finding(position: int, **changes: Any) -> Finding:
    fields: dict[str, Any] = {
        "request_id": "r1",
        "position": position,
        "rule_id": "6b1f0c1e-3c1d-4c7e-9a53-0d7f6a4b9e01",
        "rule_name": "a_rule",
        "rule_version": "1",
        "title": "t",
        "severity": Severity.HIGH,
        "state": FindingState.MATCH,
        "fve": 0.9,
    }
    return Finding(**{**fields, **changes})


def test_a_match_raises_sampling_and_keeps_vectors(tmp_path: Path) -> None:
    made = Decider().decide(rules_of(tmp_path, SIMPLE + ACTIONS), [finding(3)])
    assert [d.kind for d in made] == ["raise_sampling", "capture"]
    assert (made[0].rate, made[0].scope, made[0].tokens) == (0.5, "session", 64)


def test_generation_stops_once_at_enough_faithful_hits(tmp_path: Path) -> None:
    rules, decider = rules_of(tmp_path, SIMPLE + ACTIONS), Decider()
    hits = [finding(1, fve=0.1), finding(2), finding(2), finding(3, fve=None), finding(4)]
    hits += [finding(5), finding(6, request_id="r2")]
    stops = [d for d in decider.decide(rules, hits) if d.kind == "stop_generation"]
    assert [(d.request_id, d.position, d.enforced) for d in stops] == [("r1", 4, True)]


def test_the_tokens_that_may_follow_a_hit_go_with_the_stop(tmp_path: Path) -> None:
    action = "actions: [{stop_generation: {mode: enforce, within_tokens: 16}}]\n"
    (stop,) = Decider().decide(rules_of(tmp_path, SIMPLE + action), [finding(1)])
    assert (stop.within_tokens, stop.enforced) == (16, True)


def test_a_budget_of_no_tokens_is_refused(tmp_path: Path) -> None:
    action = "actions: [{stop_generation: {within_tokens: 0}}]\n"
    with pytest.raises(RuleError, match="within_tokens"):
        rules_of(tmp_path, SIMPLE + action)


def test_the_hits_of_a_further_turn_count_anew(tmp_path: Path) -> None:
    rules, decider = rules_of(tmp_path, SIMPLE + ACTIONS), Decider()
    stops = []
    for positions in ((1, 2, 3), (10,), (11,)):
        made = decider.decide(rules, [finding(position) for position in positions])
        stops.append([d.position for d in made if d.kind == "stop_generation"])
        if positions == (1, 2, 3):
            decider.ended("r1")
    assert stops == [[2], [], [11]]


def test_in_shadow_a_stop_is_told_and_not_enforced(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, SIMPLE + "actions: [{stop_generation: {}}]\n")
    (stop,) = Decider().decide(rules, [finding(1)])
    assert not stop.enforced


def test_undecided_findings_and_rules_without_actions_decide_nothing(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, SIMPLE + ACTIONS)
    assert Decider().decide(rules, [finding(1, state=FindingState.UNDECIDED)]) == ()
    assert Decider().decide(rules_of(tmp_path, SIMPLE), [finding(1)]) == ()
