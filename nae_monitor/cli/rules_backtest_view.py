"""A backtest as a table and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nae_monitor.cli.terminal import output, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nae_monitor.detect.tools.alerting import Fate
    from nae_monitor.detect.tools.backtest import Backtest, Difference, Group, RuleTally
    from nae_monitor.detect.tools.rates import Rate

SHOWN = 20
HELD_BACK: tuple[Fate, ...] = ("repeat", "overflow")
FATES: tuple[Fate, ...] = ("sent", *HELD_BACK, "untimed")


def backtest_as_json(found: Backtest) -> dict[str, Any]:
    """Everything, with rates per 1,000."""
    return {
        "samples": found.samples,
        "rules": [_tally(tally) for tally in found.tallies.values()],
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
        "kind": "aggregation" if tally.is_aggregation else "rule",
        "severity": tally.severity,
        "requests": _rate(tally.request_rate),
        "undecided": tally.undecided,
        "alerts": {fate: tally.alerts[fate] for fate in FATES},
    }
    if not tally.is_aggregation:
        value["samples"] = _rate(tally.rate)
        value["phases"] = {phase: _rate(rate) for phase, rate in tally.phase_rates().items()}
    value["groups"] = [
        {"model": model, "layer": layer, "phase": phase or None, **_rate(rate)}
        for (model, layer, phase), rate in tally.group_rates().items()
    ]
    return value


def _rate(rate: Rate) -> dict[str, Any]:
    low, high = rate.interval
    per_1k = None if rate.share is None else round(1000 * rate.share, 3)
    interval = [round(1000 * low, 3), round(1000 * high, 3)]
    return {"hits": rate.hits, "of": rate.trials, "per_1k": per_1k, "interval_95": interval}


def _difference(difference: Difference) -> dict[str, str]:
    return {"id": difference.sample_id, "rule": difference.rule_name}


def print_backtest(found: Backtest) -> None:
    """A block of rows a rule, then what was not as expected."""
    from rich.table import Table

    console = output()
    table = Table("rule", "what", box=None, pad_edge=False)
    for heading in ("judged", "hits", "per 1k (95 %)", "undecided", "alerts"):
        table.add_column(heading, justify="right")
    for tally in found.tallies.values():
        for number, (what, rate) in enumerate(_rows(tally)):
            first = number == 0
            table.add_row(
                tally.rule_name if first else "",
                printable(what),
                str(rate.trials),
                str(rate.hits),
                _shown(rate),
                str(tally.undecided) if first else "",
                _alerts(tally) if first else "",
            )
    console.print(table)
    console.print(f"{found.samples} samples")
    if len(found.groups) > 1:
        for (model, layer), rate in found.group_rates().items():
            console.print(printable(f"{_place(model, layer)}: {_shown(rate)} per 1k, any rule"))
    for kind, listed in (("missing", found.missing), ("unexpected", found.unexpected)):
        if found.counts[kind]:
            console.print(f"{found.counts[kind]} {kind}:")
            for one in listed[:SHOWN]:
                console.print(printable(f"  {one.sample_id}: {one.rule_name}"), soft_wrap=True)
            if found.counts[kind] > SHOWN:
                console.print(f"  and {found.counts[kind] - SHOWN} more; --json lists them")


def _rows(tally: RuleTally) -> Iterator[tuple[str, Rate]]:
    """The whole first; parts only where there are several, requests where they differ."""
    yield "requests" if tally.is_aggregation else "samples", tally.rate
    phases, groups = tally.phase_rates(), tally.group_rates()
    if len({group[:2] for group in groups}) > 1:
        yield from ((_group(group), rate) for group, rate in groups.items())
    elif len(phases) > 1:
        yield from phases.items()
    if not tally.is_aggregation and len(tally.requests) < tally.rate.trials:
        yield "requests", tally.request_rate


def _group(group: Group) -> str:
    model, layer, phase = group
    return f"{_place(model, layer)} {phase}".rstrip()


def _place(model: str, layer: int) -> str:
    return f"{model or '(no model)'} layer {layer}"


def _alerts(tally: RuleTally) -> str:
    """How many go out; those held back behind a plus."""
    held_back = sum(tally.alerts[fate] for fate in HELD_BACK)
    if untimed := tally.alerts["untimed"]:
        return f"{untimed} (no times)"
    return f"{tally.alerts['sent']}" + (f" (+{held_back} held back)" if held_back else "")


def _shown(rate: Rate) -> str:
    if rate.share is None:
        return "-"
    low, high = rate.interval
    return f"{1000 * rate.share:.3g} ({1000 * low:.3g}-{1000 * high:.3g})"
