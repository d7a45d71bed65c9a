"""Runs the examples that aggregation rules carry, and those that ask for suppression or routes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from nae_monitor.detect.aggregation import AggregationRule, AggregationTest, Answer, Sample
from nae_monitor.detect.correlation import Aggregation, Firing
from nae_monitor.detect.response import Suppression
from nae_monitor.detect.suppression import Suppressor
from nae_monitor.records import Alert, FindingState, Request, Severity

SECOND_NS = 10**9
MAX_TEST_SAMPLES = 20_000
_REQUEST = Request("test", "test", "test", session_id="test", tenant="test")
_TURN = (_REQUEST.request_id, _REQUEST.started_unix_ns)


def fault_of(rule: AggregationRule, test: AggregationTest) -> str:
    """Why a test of an aggregation rule fails; "" where it passes."""
    state, why, matches = _outcome(rule, test)
    if state is not test.expect:
        because = f" ({why})" if why else ""
        return f"{state.value}{because}, expected {test.expect.value}"
    if test.expect_severity not in (None, rule.severity):
        return f"severity {rule.severity.value}, expected {test.expect_severity}"
    times_s = [firing.anchor.captured_unix_ns / SECOND_NS for firing in matches]
    return response_fault(
        rule.suppress,
        rule.actions.routes,
        times_s if rule.window.unit == "time" else [0.0] * len(times_s),
        test.expect_suppressed,
        test.expect_routes,
    )


def response_fault(
    suppress: Suppression | None,
    routes: tuple[str, ...],
    times_s: Iterable[float],
    expect_suppressed: int | None,
    expect_routes: frozenset[str] | None,
    request: Request = _REQUEST,
) -> str:
    """Why what follows a match is not as expected, for alerts of one request; "" where it is."""
    if expect_routes is not None and frozenset(routes) != expect_routes:
        return f"routes {_listed(routes)}, expected {_listed(expect_routes)}"
    if expect_suppressed is None:
        return ""
    suppressor = Suppressor({} if suppress is None else {"test": suppress})
    alerts = [_alert(request, time_s) for time_s in sorted(times_s)]
    held_back = len(alerts) - len(suppressor.let_through(alerts))
    if held_back != expect_suppressed:
        return f"{held_back} of {len(alerts)} alerts suppressed, expected {expect_suppressed}"
    return ""


def _outcome(
    rule: AggregationRule, test: AggregationTest
) -> tuple[FindingState, str, list[Firing]]:
    """The verdict over all samples of a test: a match anywhere, else anything undecided."""
    aggregation = Aggregation(rule, Counter())
    last: dict[tuple[str, int, int], Firing] = {}
    for sample in samples_of(rule, test):
        last.update({firing.anchor.identity: firing for firing in aggregation.add(sample)})
    matches = [f for f in last.values() if f.answer.state is FindingState.MATCH]
    if matches:
        return FindingState.MATCH, "", matches
    _, ending = aggregation.ended(*_TURN, _fields())
    open_: list[Answer] = [firing.answer for firing in last.values()]
    undecided = [a for a in (*open_, ending) if a.state is FindingState.UNDECIDED]
    if undecided:
        return FindingState.UNDECIDED, undecided[0].why, []
    return FindingState.NO_MATCH, "", []


def samples_of(rule: AggregationRule, test: AggregationTest) -> list[Sample]:
    """The hits of a test among its other samples, which are spread evenly up to the last hit.

    ``at`` counts tokens, samples or seconds, as the rule's window does.
    """
    unit_ns = SECOND_NS if rule.window.unit == "time" else 1
    hits: dict[int, set[str]] = {}
    for name, at in test.hits:
        hits.setdefault(round(at * unit_ns), set()).add(name)
    end = max(hits, default=0)
    wanted = len(hits) if test.samples is None else test.samples
    if test.rate is not None:
        wanted = max(len(hits), round(test.rate * (end / unit_ns + 1)))
    if rule.window.unit == "samples":
        wanted = max(wanted, end + 1)
    wanted = max(len(hits), min(wanted, MAX_TEST_SAMPLES))
    places = set(hits)
    for step in range(wanted):
        if len(places) >= wanted:
            break
        places.add(end * step // max(1, wanted - 1))
    free = (place for place in range(end + wanted + 1) if place not in places)
    while len(places) < wanted:
        places.add(next(free))
    return [_sample(place, hits.get(place, set())) for place in sorted(places)]


def _sample(place: int, names: set[str]) -> Sample:
    # One of the two is what the window counts; both ascend. Times start at 1: 0 is "not known".
    return Sample(*_TURN, place, place + 1, _fields(), frozenset(names))


def _fields() -> dict[str, str]:
    return {
        "request_id": "test",
        "group_id": "test",
        "session_id": "test",
        "tenant": "test",
        "model": "test",
    }


def _alert(request: Request, time_s: float) -> Alert:
    return Alert(
        alert_id="test",
        request=request,
        rule_id="test",
        rule_name="test",
        rule_version="1",
        title="",
        severity=Severity.INFORMATIONAL,
        risk_score=None,
        tags=(),
        first_position=0,
        last_position=0,
        count=1,
        held_back=0,
        evidence=(),
        nla_id="",
        sequence=0,
        time_unix_ns=round(time_s * SECOND_NS),
    )


def _listed(routes: Iterable[str]) -> str:
    return ", ".join(sorted(routes)) or "none"
