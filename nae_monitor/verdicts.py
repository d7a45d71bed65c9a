"""What may be said of a request: clean needs coverage, and nothing lost or left undecided."""

from __future__ import annotations

from collections.abc import Sequence

from nae_monitor.records import (
    Coverage,
    Finding,
    FindingState,
    Severity,
    Verdict,
    VerdictState,
)
from nae_monitor.settings import PolicySettings


def judge_request(
    request_id: str,
    findings: Sequence[Finding],
    coverage: Coverage,
    policy: PolicySettings,
    losses: Sequence[str] = (),
) -> Verdict:
    """Fold findings and coverage: a match is an alert; any gap makes it undecided, not clean.

    A match of an informational rule says what went on (a refusal, say), not that it was wrong: it
    is among the findings and leaves the verdict alone.

    ``losses`` are gaps that no ledger counts, each a reason in words.
    """
    if any(
        finding.state is FindingState.MATCH and finding.severity is not Severity.INFORMATIONAL
        for finding in findings
    ):
        return Verdict(request_id, VerdictState.ALERT, tuple(findings), coverage, ())
    reasons = (*_undecided_rules(findings), *_gaps(coverage, policy), *losses)
    if not reasons and not is_balanced(coverage):
        reasons = ("its ledger does not balance: tokens went uncounted",)
    state = VerdictState.UNDECIDED if reasons else VerdictState.CLEAN
    return Verdict(request_id, state, tuple(findings), coverage, reasons)


def is_balanced(coverage: Coverage) -> bool:
    """Whether every token of a finished request is accounted for, once.

    Seen tokens were screened, excluded, cached or dropped before the screen; sampled ones were
    judged or dropped after it.
    """
    came = coverage.seen_tokens + coverage.sampled_tokens
    went = (
        coverage.screened_tokens
        + coverage.excluded_tokens
        + coverage.cached_tokens
        + coverage.judged_tokens
        + sum(coverage.dropped_tokens.values())
    )
    return came == went


def _undecided_rules(findings: Sequence[Finding]) -> list[str]:
    rules = sorted({f.rule_name for f in findings if f.state is FindingState.UNDECIDED})
    return [f"rule {name} could not decide" for name in rules]


def _gaps(coverage: Coverage, policy: PolicySettings) -> list[str]:
    reasons: list[str] = []
    eligible_tokens = coverage.seen_tokens - coverage.excluded_tokens
    if coverage.seen_tokens == 0:
        reasons.append("no token was seen")
    elif coverage.screened_tokens < policy.min_screened_share * eligible_tokens:
        reasons.append(f"screened {coverage.screened_tokens} of {eligible_tokens} eligible tokens")
    if coverage.judged_tokens < policy.min_judged_tokens:
        reasons.append(
            f"judged {coverage.judged_tokens} tokens, the policy asks for "
            f"{policy.min_judged_tokens}"
        )
    lost = ", ".join(f"{n} {reason}" for reason, n in coverage.dropped_tokens.items())
    return [*reasons, f"dropped: {lost}"] if lost else reasons


def fold_verdicts(request_id: str, verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict for the sequences of a batch: the worst state, all findings, summed coverage.

    No verdict at all is undecided: an unknown or unfinished request is not a clean one.
    """
    if not verdicts:
        nothing = Coverage(0, 0, 0, 0, 0, 0, {})
        return Verdict(
            request_id, VerdictState.UNDECIDED, (), nothing, ("no finished request of this id",)
        )
    if len(verdicts) == 1 and verdicts[0].request_id == request_id:
        return verdicts[0]
    order = (VerdictState.ALERT, VerdictState.UNDECIDED, VerdictState.CLEAN)
    return Verdict(
        request_id=request_id,
        state=min((v.state for v in verdicts), key=order.index),
        findings=tuple(f for v in verdicts for f in v.findings),
        coverage=_summed([v.coverage for v in verdicts]),
        reasons=tuple(f"{v.request_id}: {reason}" for v in verdicts for reason in v.reasons),
    )


def _summed(parts: Sequence[Coverage]) -> Coverage:
    dropped: dict[str, int] = {}
    for part in parts:
        for reason, amount in part.dropped_tokens.items():
            dropped[reason] = dropped.get(reason, 0) + amount
    return Coverage(
        seen_tokens=sum(p.seen_tokens for p in parts),
        screened_tokens=sum(p.screened_tokens for p in parts),
        sampled_tokens=sum(p.sampled_tokens for p in parts),
        decoded_tokens=sum(p.decoded_tokens for p in parts),
        judged_tokens=sum(p.judged_tokens for p in parts),
        cached_tokens=sum(p.cached_tokens for p in parts),
        dropped_tokens=dropped,
        excluded_tokens=sum(p.excluded_tokens for p in parts),
        reused_tokens=sum(p.reused_tokens for p in parts),
    )
