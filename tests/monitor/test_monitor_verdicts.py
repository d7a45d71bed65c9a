"""Alert before undecided before clean; clean only where nothing is missing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.integrity import RULE_NAME, blind_alert
from nae_monitor.records import (
    Coverage,
    Finding,
    FindingState,
    Request,
    Severity,
    Verdict,
    VerdictState,
)
from nae_monitor.settings import PolicySettings
from nae_monitor.verdicts import fold_verdicts, is_balanced, judge_request

GOOD = Coverage(
    seen_tokens=20,
    screened_tokens=15,
    sampled_tokens=4,
    decoded_tokens=4,
    judged_tokens=4,
    cached_tokens=0,
    dropped_tokens={},
    excluded_tokens=5,
)
POLICY = PolicySettings()


def finding(state: FindingState) -> Finding:
    return Finding("r", 1, "id", "rule", "1", "Rule", Severity.LOW, state)


def verdict(name: str, state: VerdictState) -> Verdict:
    reasons = ("why",) if state is VerdictState.UNDECIDED else ()
    return Verdict(name, state, (), GOOD, reasons)


def test_full_coverage_without_findings_is_clean() -> None:
    judged = judge_request("r", [], GOOD, POLICY)
    assert (judged.state, judged.reasons) == (VerdictState.CLEAN, ())


def test_a_match_is_an_alert_whatever_else_is_missing() -> None:
    lost = replace(GOOD, dropped_tokens={"queue_full": 3}, judged_tokens=1)
    findings = [finding(FindingState.UNDECIDED), finding(FindingState.MATCH)]
    assert judge_request("r", findings, lost, POLICY, ["lost"]).state is VerdictState.ALERT


def test_a_match_that_only_informs_is_told_and_leaves_the_verdict_alone() -> None:
    told = replace(finding(FindingState.MATCH), severity=Severity.INFORMATIONAL)
    judged = judge_request("r", [told], GOOD, POLICY)
    assert (judged.state, judged.findings) == (VerdictState.CLEAN, (told,))
    lost = replace(GOOD, judged_tokens=0)
    assert judge_request("r", [told], lost, POLICY).state is VerdictState.UNDECIDED
    both = [told, finding(FindingState.MATCH)]
    assert judge_request("r", both, GOOD, POLICY).state is VerdictState.ALERT


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"judged_tokens": 0, "sampled_tokens": 0}, "judged 0 tokens, the policy asks for 1"),
        ({"screened_tokens": 14}, "screened 14 of 15 eligible tokens"),
        ({"dropped_tokens": {"expired": 2}}, "dropped: 2 expired"),
        ({"sampled_tokens": 5}, "its ledger does not balance: tokens went uncounted"),
        ({"seen_tokens": 0}, "no token was seen"),
    ],
)
def test_a_gap_makes_it_undecided_and_is_named(change: dict[str, int], reason: str) -> None:
    judged = judge_request("r", [], replace(GOOD, **change), POLICY)  # type: ignore[arg-type]
    assert judged.state is VerdictState.UNDECIDED
    assert judged.reasons == (reason,)


def test_a_loss_that_no_ledger_counts_makes_it_undecided() -> None:
    judged = judge_request("r", [], GOOD, POLICY, ["the recording is incomplete"])
    assert judged.reasons == ("the recording is incomplete",)
    assert judged.state is VerdictState.UNDECIDED


COUNTS = st.integers(0, 30)
COVERAGES = st.builds(
    Coverage, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS,
    st.dictionaries(st.sampled_from(["expired", "engine"]), st.integers(1, 9)), COUNTS,
)  # fmt: skip


@settings(deadline=None)
@given(
    COVERAGES,
    st.builds(PolicySettings, st.integers(0, 20), st.floats(0, 1)),
    st.lists(st.sampled_from([FindingState.MATCH, FindingState.UNDECIDED])),
)
def test_clean_is_given_only_where_the_policy_is_met_and_nothing_is_open(
    coverage: Coverage, policy: PolicySettings, states: list[FindingState]
) -> None:
    judged = judge_request("r", [finding(state) for state in states], coverage, policy)
    eligible_tokens = coverage.seen_tokens - coverage.excluded_tokens
    clean = (
        not states
        and not coverage.dropped_tokens
        and is_balanced(coverage)
        and coverage.seen_tokens > 0
        and coverage.judged_tokens >= policy.min_judged_tokens
        and coverage.screened_tokens >= policy.min_screened_share * eligible_tokens
    )
    assert (judged.state is VerdictState.CLEAN) == clean
    assert (judged.state is VerdictState.ALERT) == (FindingState.MATCH in states)
    assert bool(judged.reasons) == (judged.state is VerdictState.UNDECIDED)


@pytest.mark.parametrize("states", list(itertools.product(VerdictState, repeat=2)))
def test_several_sequences_have_the_worst_of_their_verdicts(
    states: tuple[VerdictState, ...],
) -> None:
    order = [VerdictState.ALERT, VerdictState.UNDECIDED, VerdictState.CLEAN]
    whole = fold_verdicts("g", [verdict(f"g#{i}", state) for i, state in enumerate(states)])
    assert whole.state is min(states, key=order.index)
    assert whole.coverage.seen_tokens == 40
    assert is_balanced(whole.coverage)


def test_no_verdict_is_undecided_and_one_of_the_same_name_is_itself() -> None:
    assert fold_verdicts("r", []).state is VerdictState.UNDECIDED
    own = verdict("r", VerdictState.CLEAN)
    assert fold_verdicts("r", [own]) is own


def test_blind_alerts_have_ids_of_their_own_and_count_on() -> None:
    sequence = itertools.count(7)
    request = Request("r", "r", "m")
    alerts = [blind_alert("decode", "3 rows dropped", request, "nla", sequence) for _ in "ab"]
    assert [alert.sequence for alert in alerts] == [7, 8]
    assert len({alert.alert_id for alert in alerts}) == 2
    assert {alert.rule_name for alert in alerts} == {RULE_NAME}
    assert alerts[0].severity is Severity.CRITICAL
