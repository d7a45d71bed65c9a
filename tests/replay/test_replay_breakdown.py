"""Two runs compared: rates as a naive count gives them, and only over what both speak of."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
from replay_demo_run import write_demo_run
from replay_scenario import SlowDecoder, WordJudge

from nae_monitor.recording import Recording
from nae_monitor.records import FindingState
from nae_monitor.replay import breakdown, compare, replay


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's findings in "live", those of other rules in "after"."""
    root = tmp_path_factory.mktemp("breakdown")
    write_demo_run(root / "live", conversations=12)
    replay([root / "live"], root / "after", decoder=SlowDecoder(), judge=WordJudge())
    arguments = {"decoder": SlowDecoder(), "judge": WordJudge()}
    where = "request in (demo-001, demo-002) and phase = completion"
    replay([root / "live"], root / "some", where=where, **arguments)  # type: ignore[arg-type]
    return root


def naive(run: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """(matched, all) requests by kind and value."""
    recording = Recording.open(run)
    rules = defaultdict(set)
    for finding in recording.findings():
        if finding.state is FindingState.MATCH:
            rules[finding.request_id].add(finding.rule_name)
    records = list(recording.requests())
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for record in records:
        request = record.request
        day = datetime.fromtimestamp(request.started_unix_ns // 10**9, UTC).strftime("%Y-%m-%d")
        hit = bool(rules[request.request_id])
        for place in (
            ("all", ""),
            ("model", request.model),
            ("tenant", request.tenant or "unknown"),
            ("day", day),
        ):
            hits, trials = found.get(place, (0, 0))
            found[place] = hits + hit, trials + 1
    for rule in {rule for names in rules.values() for rule in names}:
        hits = sum(rule in names for names in rules.values())
        found["rule", rule] = hits, len(records)
    return found


def test_rates_are_those_of_a_naive_count(runs: Path) -> None:
    changes = breakdown(runs / "live", runs / "after")
    for side, run in (("before", "live"), ("after", "after")):
        counted = naive(runs / run)
        told = {
            (c.kind, c.value): (getattr(c, side).hits, getattr(c, side).trials) for c in changes
        }
        assert {place: told[place] for place in counted} == counted
        assert all(told[place][0] == 0 for place in told.keys() - counted.keys())
    assert [c.kind for c in changes] == sorted(
        (c.kind for c in changes), key=["all", "rule", "model", "tenant", "day"].index
    )


def test_a_filtered_replay_is_compared_over_its_own_rows_only(runs: Path) -> None:
    rows = {
        (row.activation.request.request_id, row.activation.position)
        for row in Recording.open(runs / "some").activations()
    }
    live = [
        one
        for one in Recording.open(runs / "live").findings()
        if (one.request_id, one.position) in rows
    ]
    outcome = compare(runs / "live", runs / "some")
    assert len(live) > 0
    assert len(outcome.gone) + len(outcome.changed) + outcome.same == len(live)
    total = next(c for c in breakdown(runs / "live", runs / "some") if c.kind == "all")
    assert (total.before.trials, total.after.trials) == (2, 2)


def test_a_run_against_itself_changes_nothing(runs: Path) -> None:
    changes = breakdown(runs / "live", runs / "live")
    assert all(c.before == c.after and not c.apart for c in changes)
    assert compare(runs / "live", runs / "live").identical
