"""A replayed run and its comparison, for people and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nae_monitor.cli.terminal import output, printable

if TYPE_CHECKING:
    from nae_monitor.detect.tools.rates import Rate
    from nae_monitor.records import Finding
    from nae_monitor.replay import Comparison, RateChange, ReplayRun

SHOWN_FINDINGS = 20


def run_json(
    run: ReplayRun, comparison: Comparison | None, rates: Sequence[RateChange]
) -> dict[str, Any]:
    """A run, and what it says differently, as plain JSON values."""
    from nae_monitor.recording import finding_to_json

    fields = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
    value = fields | {"directory": str(run.directory), "dropped": dict(run.dropped)}
    value["alerts"] = dict(run.alerts)
    if comparison is not None:
        value["comparison"] = {
            "identical": comparison.identical,
            "same": comparison.same,
            "new": [finding_to_json(f) for f in comparison.new],
            "gone": [finding_to_json(f) for f in comparison.gone],
            "changed": [[finding_to_json(f) for f in pair] for pair in comparison.changed],
            "rates": [_rate_json(change) for change in rates],
        }
    return value


def _rate_json(change: RateChange) -> dict[str, Any]:
    sides = {"before": change.before, "after": change.after}
    return {
        "by": change.kind,
        "value": change.value,
        **{
            name: {
                "matched_requests": rate.hits,
                "requests": rate.trials,
                "share": rate.share,
                "interval_95": list(rate.interval),
            }
            for name, rate in sides.items()
        },
    }


def print_run(run: ReplayRun, comparison: Comparison | None, rates: Sequence[RateChange]) -> None:
    """The same for people; findings and rates cut to what a screen holds."""
    console = output()
    console.print(
        f"{run.rows} rows: {run.judged} judged ({run.reused} on their live decoding, "
        f"{run.decoded} decoded now), {run.findings} findings"
    )
    for reason, rows in run.dropped.items():
        console.print(f"  {rows} rows not judged: {reason}")
    if run.not_recorded:
        console.print(
            f"  {run.not_recorded} rows judged live are not in the recordings: "
            "their requests are undecided, never clean"
        )
    if alerts := sum(run.alerts.values()):
        held_back = run.alerts.get("repeat", 0) + run.alerts.get("overflow", 0)
        untimed = run.alerts.get("untimed", 0)
        note = f", {untimed} of unknown time" if untimed else ""
        console.print(f"{alerts} alerts: {held_back} held back by suppression{note}")
    console.print(f"run: {run.directory}", soft_wrap=True)
    if comparison is None:
        return
    console.print(
        f"compared: {comparison.same} the same, {len(comparison.new)} new, "
        f"{len(comparison.gone)} gone, {len(comparison.changed)} changed"
    )
    lines = [("new", f) for f in comparison.new] + [("gone", f) for f in comparison.gone]
    lines += [("changed", after) for _, after in comparison.changed]
    for what, finding in lines[:SHOWN_FINDINGS]:
        console.print(printable(f"  {what}: {_finding(finding)}"), soft_wrap=True)
    if len(lines) > SHOWN_FINDINGS:
        console.print(f"  and {len(lines) - SHOWN_FINDINGS} more; --json lists them all")
    _print_rates(rates)


def _print_rates(rates: Sequence[RateChange]) -> None:
    """Shares of requests with a match; of groups only those that differ."""
    console = output()
    shown = [one for one in rates if one.kind == "all" or one.before != one.after]
    console.print("requests with a match (95 % interval):")
    for change in shown[:SHOWN_FINDINGS]:
        name = "all" if change.kind == "all" else f"{change.kind} {change.value}"
        mark = ", apart" if change.apart else ""
        line = f"  {name}: {_share(change.before)} -> {_share(change.after)}{mark}"
        console.print(printable(line), soft_wrap=True)
    if len(shown) > SHOWN_FINDINGS:
        console.print(f"  and {len(shown) - SHOWN_FINDINGS} more; --json lists them all")


def _share(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.hits} of {rate.trials} ({low:.1%} to {high:.1%})"


def _finding(finding: Finding) -> str:
    return (
        f"{finding.request_id} token {finding.position} {finding.rule_name} "
        f"{finding.severity.value} {finding.state.value}"
    )
