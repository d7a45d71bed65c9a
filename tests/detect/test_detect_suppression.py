import itertools
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.detect.response import Suppression
from nae_monitor.detect.suppression import Suppressor
from nae_monitor.records import Alert, Request, Severity

S = 10**9


def alert(time_s: int, request_id: str = "r1", count: int = 1, **changes: Any) -> Alert:
    fields: dict[str, Any] = {
        "alert_id": f"{request_id}@{time_s}",
        "request": Request(request_id, request_id, "m", session_id="s"),
        "rule_id": "rule",
        "rule_name": "rule",
        "rule_version": "1",
        "title": "t",
        "severity": Severity.HIGH,
        "risk_score": None,
        "tags": (),
        "first_position": 0,
        "last_position": 0,
        "count": count,
        "held_back": 0,
        "evidence": (),
        "nla_id": "n",
        "sequence": 0,
        "time_unix_ns": time_s * S,
    }
    return Alert(**{**fields, **changes})


def passed(policy: Suppression, *alerts: Alert) -> list[tuple[int, int]]:
    """Seconds and held-back findings of what goes out."""
    out = Suppressor({"rule": policy}).let_through(alerts)
    return [(one.time_unix_ns // S, one.held_back) for one in out]


policies = st.builds(
    Suppression,
    group_by=st.sampled_from([("request_id",), ("session_id",), ("tenant",), ("session_id", "x")]),
    quiet_ns=st.integers(0, 20).map(lambda s: s * S),
    max_alerts=st.none() | st.integers(1, 3),
    period_ns=st.integers(1, 20).map(lambda s: s * S),
    overflow=st.sampled_from(["summarize", "count"]),
)
streams = st.lists(
    st.builds(alert, st.integers(0, 60), st.sampled_from(["r1", "r2", "r3"]), st.integers(1, 4)),
    max_size=30,
)


@settings(max_examples=120)
@given(policy=policies, alerts=streams, groups=st.integers(1, 3))
def test_no_finding_is_ever_lost_from_the_count(
    policy: Suppression, alerts: list[Alert], groups: int
) -> None:
    suppressor = Suppressor({"rule": policy}, max_groups=groups)
    out = suppressor.let_through(alerts)
    told = sum(one.count + one.held_back for one in out)
    assert told + sum(suppressor.pending().values()) == sum(one.count for one in alerts)
    held = suppressor.counts["held_back_repeat"] + suppressor.counts["held_back_overflow"]
    assert held == len(alerts) - len(out)


@settings(max_examples=60)
@given(policy=policies, alerts=streams)
def test_no_more_go_out_than_the_policy_allows(policy: Suppression, alerts: list[Alert]) -> None:
    ordered = sorted(alerts, key=lambda one: one.time_unix_ns)
    out = Suppressor({"rule": policy}).let_through(ordered)
    if policy.max_alerts is not None:
        for one in out:
            since = one.time_unix_ns - policy.period_ns
            inside = [o for o in out if since < o.time_unix_ns <= one.time_unix_ns]
            assert len(inside) <= policy.max_alerts
    if policy.group_by == ("request_id",):
        by_request = Counter((o.request.request_id, o.time_unix_ns) for o in out)
        times = sorted(by_request)
        for (name, first), (other, second) in itertools.pairwise(times):
            assert name != other or second - first >= policy.quiet_ns


def test_repeats_are_held_back_and_told_by_the_next_alert() -> None:
    policy = Suppression(quiet_ns=10 * S)
    alerts = [alert(0), alert(3, count=2), alert(9), alert(10), alert(25)]
    assert passed(policy, *alerts) == [(0, 0), (10, 3), (25, 0)]


def test_groups_are_held_back_apart() -> None:
    policy = Suppression(quiet_ns=10 * S)
    assert passed(policy, alert(0), alert(1, "r2"), alert(2)) == [(0, 0), (1, 0)]
    by_session = Suppression(("session_id",), quiet_ns=10 * S)
    assert passed(by_session, alert(0), alert(1, "r2"), alert(2)) == [(0, 0)]


def test_what_a_limit_holds_back_is_summarised_in_the_rules_next_alert() -> None:
    policy = Suppression(max_alerts=1, period_ns=10 * S)
    assert passed(policy, alert(0), alert(1, "r2"), alert(2, "r3"), alert(11)) == [(0, 0), (11, 2)]


def test_what_is_only_counted_stays_in_the_counters() -> None:
    suppressor = Suppressor({"rule": Suppression((), 0, 1, 10 * S, "count")})
    out = suppressor.let_through([alert(0), alert(1), alert(11)])
    assert [one.held_back for one in out] == [0, 0]
    assert suppressor.pending() == {"rule": 1}


def test_a_rule_without_a_policy_is_never_held_back() -> None:
    suppressor = Suppressor({})
    assert len(suppressor.let_through([alert(0), alert(0), alert(0)])) == 3
    assert suppressor.pending() == {}


def test_what_an_earlier_policy_held_back_is_told_under_a_later_one() -> None:
    suppressor = Suppressor({"rule": Suppression(("session_id",), 0, 1, 100 * S)})
    suppressor.let_through([alert(0), alert(1)])
    suppressor.use({})
    assert [one.held_back for one in suppressor.let_through([alert(2)])] == [1]
