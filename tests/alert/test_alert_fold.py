from __future__ import annotations

import itertools
from typing import Any

import pytest
from alert_parts import make_evidence
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.alert.event import occurrence_id
from nae_monitor.alert.fold import AlertFolder, alert_id
from nae_monitor.records import FindingState, Request, Severity


def folder(**options: Any) -> AlertFolder:
    options.setdefault("sequence", itertools.count())
    return AlertFolder("nla-1", now_unix_ns=lambda: 7, **options)


def add(fold: AlertFolder, request_id: str = "r1", **fields: Any) -> list[Any]:
    evidence = make_evidence(request_id=request_id, **fields)
    return fold.add(evidence.finding, evidence, Request(request_id, request_id, "m"))


def test_folds_each_rule_of_a_request_into_one_alert() -> None:
    fold = folder()
    add(fold, position=20)
    add(fold, position=11)
    add(fold, position=15, rule_id="rule-2")
    alerts = fold.finish("r1")
    assert [(a.rule_id, a.count, a.first_position, a.last_position) for a in alerts] == [
        ("rule-1", 2, 11, 20),
        ("rule-2", 1, 15, 15),
    ]


def test_undecided_findings_make_no_alert() -> None:
    fold = folder()
    add(fold, state=FindingState.UNDECIDED)
    assert fold.finish("r1") == []


def test_a_finished_request_is_forgotten() -> None:
    fold = folder()
    add(fold)
    assert len(fold.finish("r1")) == 1
    assert fold.finish("r1") == []


def test_best_evidence_comes_first_by_severity_then_known_fve_then_position() -> None:
    fold = folder(max_evidence=4)
    add(fold, position=30, fve=None)
    add(fold, position=31, fve=0.2)
    add(fold, position=29, fve=0.7)
    add(fold, position=28, fve=0.7)
    add(fold, position=40, fve=0.1, severity=Severity.CRITICAL)
    (alert,) = fold.finish("r1")
    assert [e.finding.position for e in alert.evidence] == [40, 28, 29, 31]
    assert (alert.severity, alert.count) == (Severity.CRITICAL, 5)


def test_evidence_whose_support_is_known_comes_first_whatever_it_is() -> None:
    fold = folder()
    for position, unsupported in ((4, None), (5, 0.9), (6, 0.1)):
        add(fold, position=position, fve=0.8 - position / 10, unsupported=unsupported)
    (alert,) = fold.finish("r1")
    assert [e.finding.unsupported for e in alert.evidence] == [0.9, 0.1, None]


def test_one_open_request_too_many_closes_the_one_idle_longest() -> None:
    fold = folder(max_open_requests=2)
    for request_id in ("a", "b", "a"):
        assert add(fold, request_id) == []
    (flushed,) = add(fold, "c")
    assert flushed.request.request_id == "b"
    assert [a.request.request_id for a in fold.finish_all()] == ["a", "c"]


def test_severest_alert_of_a_request_has_the_first_sequence_number() -> None:
    fold = folder()
    add(fold, rule_id="low", severity=Severity.LOW)
    add(fold, rule_id="critical", severity=Severity.CRITICAL)
    assert [(a.rule_id, a.sequence) for a in fold.finish("r1")] == [("critical", 0), ("low", 1)]


def test_sequence_numbers_are_shared_by_the_folders_of_a_process() -> None:
    seen = []
    for _ in range(2):
        fold = AlertFolder("nla-1")
        add(fold)
        seen += [alert.sequence for alert in fold.finish("r1")]
    assert seen[1] == seen[0] + 1


@given(
    st.lists(
        st.tuples(
            st.integers(10, 99),
            st.one_of(st.none(), st.floats(0, 1)),
            st.sampled_from(["rule-1", "rule-2"]),
        ),
        max_size=25,
    ),
    st.randoms(),
)
def test_alerts_do_not_depend_on_the_order_findings_arrive_in(
    findings: list[tuple[int, float | None, str]], random: Any
) -> None:
    shuffled = list(findings)
    random.shuffle(shuffled)
    results = []
    for order in (findings, shuffled):
        fold = folder()
        for position, fve, rule_id in order:
            add(fold, position=position, fve=fve, rule_id=rule_id)
        alerts = fold.finish("r1")
        assert sum(a.count for a in alerts) == len(findings)
        assert all(len(a.evidence) <= 3 for a in alerts)
        results.append(
            [(a.alert_id, a.count, a.last_position, [e.fve for e in a.evidence]) for a in alerts]
        )
    assert results[0] == results[1]


places = st.tuples(st.text(), st.integers(0, 2**63), st.text(), st.integers(0, 999))


@given(one=places, other=places)
def test_alert_ids_differ_where_request_turn_rule_or_position_differs(
    one: tuple[str, int, str, int], other: tuple[str, int, str, int]
) -> None:
    def id_of(request_id: str, started_unix_ns: int, rule_id: str, position: int) -> str:
        request = Request(request_id, "group", "model", started_unix_ns=started_unix_ns)
        return alert_id(request, rule_id, position)

    assert (id_of(*one) == id_of(*other)) == (one == other)
    assert id_of(*one[:3], 3) != id_of(*one[:3], 4)
    assert id_of(one[0], 5, *one[2:]) != id_of(one[0], 6, *one[2:])


def test_refuses_bounds_that_would_hold_nothing() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        AlertFolder("nla", max_evidence=0)


def test_a_replay_at_another_time_gives_the_same_alert_and_event_ids() -> None:
    def ids_at(now_unix_ns: int, first: int) -> list[tuple[str, str]]:
        fold = AlertFolder(
            "nla-1", now_unix_ns=lambda: now_unix_ns, sequence=itertools.count(first)
        )
        for position, rule_id in ((20, "a"), (11, "a"), (5, "b")):
            add(fold, position=position, rule_id=rule_id)
        return [(alert.alert_id, occurrence_id(alert)) for alert in fold.finish("r1")]

    assert ids_at(7, 0) == ids_at(8, 100)
    assert len({name for pair in ids_at(7, 0) for name in pair}) == 4
