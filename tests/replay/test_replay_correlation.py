"""Aggregation in replay says what it said live, though rows are read request by request."""

import random
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replay_rules import RULE_A

from nae_monitor.detect import Correlator, RuleSet, Sample, load_rules
from nae_monitor.recording import RequestRecord
from nae_monitor.records import Coverage, Finding, FindingState, Request, VerdictState
from nae_monitor.replay.correlation import correlated

RULES = f"""{RULE_A}---
schema_version: 1
title: Rate in a session
id: 6b1f0c1e-3c1d-4c7e-9a53-0d7f6a4b9e02
name: rate
severity: medium
aggregation:
  type: event_rate
  rules: [a]
  group_by: [session_id]
  window: {{samples: 4}}
  condition: {{gte: 0.5}}
  min_samples: 2
---
schema_version: 1
title: Count in a request
id: 6b1f0c1e-3c1d-4c7e-9a53-0d7f6a4b9e03
name: count
severity: medium
aggregation:
  {{type: event_count, rules: [a], window: {{tokens: 5}}, condition: {{gte: 2}}, min_samples: 3}}
"""
NOTHING = Coverage(0, 0, 0, 0, 0, 0, {})


def rule_set(tmp_path: Path) -> RuleSet:
    (tmp_path / "rules.yaml").write_text(RULES)
    return load_rules([tmp_path])


def record(name: str) -> RequestRecord:
    request = Request(name, name, "m", session_id="s", started_unix_ns=1)
    return RequestRecord(request, None, 0, 0, NOTHING, VerdictState.CLEAN, ())


def sample(name: str, position: int, captured: int, hit: bool) -> Sample:
    fields = {"request_id": name, "session_id": "s"}
    hits = frozenset(["a"] if hit else [])
    return Sample(name, 1, position, captured, fields, hits)


def live(rules: RuleSet, samples: list[Sample]) -> dict[str, list[Finding]]:
    """In the order of capture, each request's end behind its last sample."""
    correlator = Correlator(lambda: rules)
    found: dict[str, list[Finding]] = {"r1": [], "r2": [], "r3": []}
    ordered = sorted(samples, key=lambda s: (s.captured_unix_ns, *s.identity))
    for index, one in enumerate(ordered):
        found[one.request_id] += correlator.add(one)
        if all(later.request_id != one.request_id for later in ordered[index + 1 :]):
            found[one.request_id] += correlator.ended(record(one.request_id).request)
    for name in sorted({"r1", "r2", "r3"} - {one.request_id for one in samples}):
        found[name] += correlator.ended(record(name).request)
    return found


rows = st.lists(
    st.tuples(st.sampled_from(["r1", "r2", "r3"]), st.integers(1, 40), st.booleans()),
    max_size=20,
    unique_by=lambda row: row[:2],
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=rows, seed=st.integers(0, 99))
def test_reading_by_request_gives_what_was_found_live(
    tmp_path: Path, rows: list[tuple[str, int, bool]], seed: int
) -> None:
    rules = rule_set(tmp_path)
    samples = [sample(name, place, 1_000 + place, hit) for name, place, hit in rows]
    expected = live(rules, samples)
    random.Random(seed).shuffle(samples)
    names = ["r1", "r2", "r3"]
    by_request = [[s for s in samples if s.request_id == name] for name in names]
    found = correlated(
        Correlator(lambda: rules),
        [(mine, {1: record(name)}) for name, mine in zip(names, by_request, strict=True)],
    )
    assert dict(zip(names, found, strict=True)) == expected


def test_a_request_without_samples_is_undecided_where_samples_are_asked_for(
    tmp_path: Path,
) -> None:
    correlator = Correlator(lambda: rule_set(tmp_path))
    ((*found,),) = correlated(correlator, [([], {1: record("r1")})])
    assert {finding.state for finding in found} == {FindingState.UNDECIDED}
