"""A backtest as JSON, and as tables: by rule, then by pack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nae_monitor.cli.rules_backtest_tables import (
    FATES,
    pack_table,
    place_of,
    print_wide,
    rule_table,
    shown_rate,
)
from nae_monitor.cli.terminal import output, printable
from nae_monitor.records import Severity

if TYPE_CHECKING:
    from nae_monitor.detect.tools.backtest import Backtest, Difference
    from nae_monitor.detect.tools.rates import Rate
    from nae_monitor.detect.tools.tally import PackTally, RuleTally, Weight

SHOWN = 20
WEIGHTS: tuple[Weight, ...] = ("alerting", "informational", "undecided")


def backtest_as_json(found: Backtest) -> dict[str, Any]:
    """Everything, with rates per 1,000."""
    return {
        "samples": found.samples,
        "requests": len(found.together.requests),
        "rules": [_tally(tally) for tally in found.tallies.values()],
        "packs": [{"pack": pack.name, **_pack(pack)} for pack in found.packs],
        "all_packs": _pack(found.together),
        "by_model_and_layer": [
            {"model": model, "layer": layer, **_rate(rate)}
            for (model, layer), rate in found.group_rates().items()
        ],
        "counts": {kind: found.counts[kind] for kind in ("missing", "unexpected")},
        "missing": [_difference(d) for d in found.missing],
        "unexpected": [_difference(d) for d in found.unexpected],
    }


def _tally(tally: RuleTally) -> dict[str, Any]:
    value: dict[str, Any] = {
        "rule": tally.rule_name,
        "pack": tally.pack,
        "kind": "aggregation" if tally.is_aggregation else "rule",
        "severity": tally.severity.value,
        "severities": {s.value: n for s in Severity if (n := tally.severities[s])},
        "gated": {how: tally.gated[how] for how in ("dropped", "downgraded", "tagged")},
        "requests": _rate(tally.request_rate),
        "alerting_requests": _rate(tally.alerting_request_rate),
        "undecided": tally.undecided,
        "alerts": {fate: tally.alerts[fate] for fate in FATES},
    }
    if not tally.is_aggregation:
        value["samples"] = _rate(tally.rate)
        value["alerting_samples"] = _rate(tally.alerting_rate)
        value["phases"] = {phase: _rate(rate) for phase, rate in tally.phase_rates().items()}
    value["groups"] = [
        {"model": model, "layer": layer, "phase": phase or None, **_rate(rate)}
        for (model, layer, phase), rate in tally.group_rates().items()
    ]
    return value


def _pack(pack: PackTally) -> dict[str, Any]:
    rates: dict[str, Any] = {
        weight: {
            "samples": _rate(pack.rate(weight)),
            "requests": _rate(pack.request_rate(weight)),
        }
        for weight in WEIGHTS
    }
    return {"rules": len(pack.rules), **rates}


def _rate(rate: Rate) -> dict[str, Any]:
    low, high = rate.interval
    per_1k = None if rate.share is None else round(1000 * rate.share, 3)
    interval = [round(1000 * low, 3), round(1000 * high, 3)]
    return {"hits": rate.hits, "of": rate.trials, "per_1k": per_1k, "interval_95": interval}


def _difference(difference: Difference) -> dict[str, str]:
    return {"id": difference.sample_id, "rule": difference.rule_name}


def print_backtest(found: Backtest) -> None:
    """Rules that alert, informational ones, packs, then what was not as expected."""
    console = output()
    every = sorted(found.tallies.values(), key=lambda tally: (tally.pack, tally.rule_name))
    informational = [t for t in every if t.severity is Severity.INFORMATIONAL]
    alerting = [t for t in every if t.severity is not Severity.INFORMATIONAL]
    if alerting:
        print_wide(rule_table("rule", alerting))
    if informational:
        print_wide(rule_table("informational rule", informational))
    print_wide(pack_table(found))
    requests = len(found.together.requests)
    console.print(f"{found.samples} samples of {requests} requests; rates per 1,000 (95 %)")
    if len(found.groups) > 1:
        for (model, layer), rate in found.group_rates().items():
            console.print(printable(f"{place_of(model, layer)}: {shown_rate(rate)} of any rule"))
    for kind, listed in (("missing", found.missing), ("unexpected", found.unexpected)):
        if found.counts[kind]:
            console.print(f"{found.counts[kind]} {kind}:")
            for one in listed[:SHOWN]:
                console.print(printable(f"  {one.sample_id}: {one.rule_name}"), soft_wrap=True)
            if found.counts[kind] > SHOWN:
                console.print(f"  and {found.counts[kind] - SHOWN} more; --json lists them")
