"""The tables of a backtest: a block of rows a rule, and one a pack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nae_monitor.cli.terminal import output, printable
from nae_monitor.records import Severity

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from nae_monitor.detect.tools.alerting import Fate
    from nae_monitor.detect.tools.backtest import Backtest
    from nae_monitor.detect.tools.rates import Rate
    from nae_monitor.detect.tools.tally import Group, PackTally, RuleTally

HELD_BACK: tuple[Fate, ...] = ("repeat", "overflow")
FATES: tuple[Fate, ...] = ("sent", *HELD_BACK, "untimed")


def print_wide(table: Table) -> None:
    """A table as wide as its rows where nobody's terminal has to hold it."""
    from rich.measure import Measurement

    console = output()
    if not console.is_terminal:
        console.width = Measurement.get(console, console.options.update(width=1_000), table).maximum
    console.print(table)
    console.print()


def rule_table(title: str, tallies: Sequence[RuleTally]) -> Table:
    """Matches of rules, by decode and by request; parts only where there are several."""
    table = _table(title, "of", "judged", "hits", "per 1k (95 %)", "undecided", "severity")
    for heading in ("gate", "alerts"):
        table.add_column(heading)
    for tally in tallies:
        for number, (what, rate) in enumerate(_rows(tally)):
            row = (printable(what), str(rate.trials), str(rate.hits), shown_rate(rate))
            if number:
                table.add_row("", *row)
            else:
                last = str(tally.undecided), _severities(tally), _gated(tally), _alerts(tally)
                table.add_row(tally.rule_name, *row, *last)
    return table


def pack_table(found: Backtest) -> Table:
    """What each pack did, a decode and a request counted once; alerting and informational apart."""
    table = _table("pack", "of", "read", "alerting", "per 1k (95 %)")
    for heading in ("informational", "per 1k (95 %)", "undecided"):
        table.add_column(heading, justify="right")
    for pack in found.packs:
        _add_pack(table, pack.name, pack)
    if len(found.packs) > 1:
        _add_pack(table, "all packs", found.together)
    return table


def _add_pack(table: Table, name: str, pack: PackTally) -> None:
    for shown, what, rate in (
        (printable(name), "samples", pack.rate),
        ("", "requests", pack.request_rate),
    ):
        alerting, informational, undecided = (
            rate("alerting"),
            rate("informational"),
            rate("undecided"),
        )
        table.add_row(
            shown,
            what,
            str(alerting.trials),
            str(alerting.hits),
            shown_rate(alerting),
            str(informational.hits),
            shown_rate(informational),
            str(undecided.hits),
        )


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(*headings[:2], box=None, pad_edge=False)
    for heading in headings[2:]:
        table.add_column(heading, justify="right")
    return table


def _rows(tally: RuleTally) -> Iterator[tuple[str, Rate]]:
    """The whole first, by sample and request; then what alerts where not every match does."""
    yield "requests" if tally.is_aggregation else "samples", tally.rate
    if not tally.is_aggregation:
        yield "requests", tally.request_rate
    if tally.severity is not Severity.INFORMATIONAL and tally.severities[Severity.INFORMATIONAL]:
        if not tally.is_aggregation:
            yield "alerting samples", tally.alerting_rate
        yield "alerting requests", tally.alerting_request_rate
    phases, groups = tally.phase_rates(), tally.group_rates()
    if len({group[:2] for group in groups}) > 1:
        yield from ((_group(group), rate) for group, rate in groups.items())
    elif len(phases) > 1:
        yield from phases.items()


def _group(group: Group) -> str:
    model, layer, phase = group
    return f"{place_of(model, layer)} {phase}".rstrip()


def place_of(model: str, layer: int) -> str:
    """Model and layer in words."""
    return f"{model or '(no model)'} layer {layer}"


def _severities(tally: RuleTally) -> str:
    """The severities that matches had after the gate; the rule's own where it matched nothing."""
    found = [f"{s.value} {n}" for s in reversed(Severity) if (n := tally.severities[s])]
    return ", ".join(found) if len(found) > 1 else (found or [tally.severity.value])[0].split()[0]


def _gated(tally: RuleTally) -> str:
    """How many matches the fidelity gate took or changed."""
    return ", ".join(f"{n} {how}" for how, n in sorted(tally.gated.items()))


def _alerts(tally: RuleTally) -> str:
    """How many go out; those held back behind a plus."""
    held_back = sum(tally.alerts[fate] for fate in HELD_BACK)
    if untimed := tally.alerts["untimed"]:
        return f"{untimed} (no times)"
    return f"{tally.alerts['sent']}" + (f" (+{held_back} held back)" if held_back else "")


def shown_rate(rate: Rate) -> str:
    """The rate per 1,000 and its interval."""
    if rate.share is None:
        return "-"
    low, high = rate.interval
    return f"{1000 * rate.share:.3g} ({1000 * low:.3g}-{1000 * high:.3g})"
