"""The verdict of a replayed request where the caller has no policy of its own."""

from __future__ import annotations

from nae_monitor.recording import RequestRecord
from nae_monitor.records import Finding, FindingState, Severity, VerdictState


def cautious_verdict(
    record: RequestRecord, findings: tuple[Finding, ...], dropped_rows: int
) -> tuple[VerdictState, tuple[str, ...]]:
    """Alert on any match; clean only what was clean live and lost nothing in replay.

    As live, a match of an informational rule leaves the verdict alone.
    """
    if any(
        finding.state is FindingState.MATCH and finding.severity is not Severity.INFORMATIONAL
        for finding in findings
    ):
        return VerdictState.ALERT, ()
    reasons = [f"{f.rule_name}: {why}" for f in findings for why in f.undecided]
    if dropped_rows:
        reasons.append(f"{dropped_rows} rows could not be judged again")
    if record.state is VerdictState.UNDECIDED:
        reasons.extend(record.reasons)
    elif record.state is VerdictState.ALERT:
        reasons.append("the alert is gone, and coverage was not judged again")
    if reasons:
        return VerdictState.UNDECIDED, tuple(dict.fromkeys(reasons))
    return VerdictState.CLEAN, ()
