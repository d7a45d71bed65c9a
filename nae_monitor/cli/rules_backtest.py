"""``rules backtest``: how often each rule matches a corpus, and against what was expected."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.rules_corpus import samples_at
from nae_monitor.cli.rules_options import (
    DEFAULT_ENCODER,
    EncoderOption,
    ModelsOption,
    NameOption,
    PathsArgument,
    chosen_rules,
    encoder_or_none,
    rules_at,
)
from nae_monitor.cli.terminal import errors, json_line, output, printable

if TYPE_CHECKING:
    from nae_monitor.detect.tools.backtest import Backtest, Difference, RuleTally
    from nae_monitor.detect.tools.rates import Rate

SHOWN = 20


class Unexpected(StrEnum):
    """What hits that nobody expected lead to."""

    REPORT = "report"
    FAIL = "fail"


def backtest(
    paths: PathsArgument = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="Recordings, or .txt (an explanation a line) and .jsonl files."),
    ] = None,
    expect: Annotated[
        Path | None, typer.Option(help="YAML or JSON: sample or request id to rules that match.")
    ] = None,
    unexpected: Annotated[
        Unexpected, typer.Option(help="What hits without an expectation lead to.")
    ] = Unexpected.REPORT,
    name: NameOption = None,
    models: ModelsOption = True,
    encoder: EncoderOption = DEFAULT_ENCODER,
    as_json: JsonOption = False,
) -> None:
    """Judge a corpus and print rates per 1,000 decodings and requests, with 95 % intervals.

    Exit code 1 where an expected match is missing, or with --unexpected fail where one is there
    that nobody expected. Undecided samples are counted apart: they are not "no match".
    """
    from rich.progress import Progress

    from nae_monitor.detect import Judge, load_rules
    from nae_monitor.detect.tools.backtest import backtest as run
    from nae_monitor.detect.tools.backtest import read_expectations

    if not corpus:
        raise typer.BadParameter("name a corpus: --corpus DIR or FILE")
    chosen = chosen_rules(load_rules(rules_at(paths)), name)
    wanted = read_expectations(expect, [rule.name for rule in chosen.rules]) if expect else None
    judge = Judge(chosen, encoder_or_none(models, encoder))
    with Progress(console=errors(), transient=True) as bar:
        task = bar.add_task("samples", total=None)
        found = run(judge, samples_at(corpus), wanted, lambda n: bar.update(task, completed=n))
    if as_json:
        json_line(_as_json(found))
    else:
        _print(found)
    if found.counts["missing"] or (unexpected is Unexpected.FAIL and found.counts["unexpected"]):
        raise typer.Exit(1)


def _rate(rate: Rate) -> dict[str, Any]:
    low, high = rate.interval
    per_1k = None if rate.share is None else round(1000 * rate.share, 3)
    interval = [round(1000 * low, 3), round(1000 * high, 3)]
    return {"hits": rate.hits, "of": rate.trials, "per_1k": per_1k, "interval_95": interval}


def _as_json(found: Backtest) -> dict[str, Any]:
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
    return {
        "rule": tally.rule_name,
        "severity": tally.severity,
        "samples": _rate(tally.rate),
        "requests": _rate(tally.request_rate),
        "phases": {phase: _rate(rate) for phase, rate in tally.phase_rates().items()},
        "undecided": tally.undecided,
    }


def _difference(difference: Difference) -> dict[str, str]:
    return {"id": difference.sample_id, "rule": difference.rule_name}


def _print(found: Backtest) -> None:
    from rich.table import Table

    console = output()
    table = Table("rule", "what", box=None, pad_edge=False)
    for heading in ("judged", "hits", "per 1k (95 %)", "undecided"):
        table.add_column(heading, justify="right")
    for tally in found.tallies.values():
        rows = [("samples", tally.rate)]
        if len(tally.judged) > 1:
            rows += list(tally.phase_rates().items())
        if len(tally.requests) < tally.rate.trials:
            rows.append(("requests", tally.request_rate))
        for number, (phase, rate) in enumerate(rows):
            first = number == 0
            table.add_row(
                tally.rule_name if first else "",
                phase,
                str(rate.trials),
                str(rate.hits),
                _shown(rate),
                str(tally.undecided) if first else "",
            )
    console.print(table)
    console.print(f"{found.samples} samples")
    if len(found.groups) > 1:
        for (model, layer), rate in found.group_rates().items():
            console.print(
                printable(f"{model or '(no model)'} layer {layer}: {_shown(rate)} per 1k")
            )
    for kind, listed in (("missing", found.missing), ("unexpected", found.unexpected)):
        if found.counts[kind]:
            console.print(f"{found.counts[kind]} {kind}:")
            for one in listed[:SHOWN]:
                console.print(printable(f"  {one.sample_id}: {one.rule_name}"), soft_wrap=True)
            if found.counts[kind] > SHOWN:
                console.print(f"  and {found.counts[kind] - SHOWN} more; --json lists them")


def _shown(rate: Rate) -> str:
    if rate.share is None:
        return "-"
    low, high = rate.interval
    return f"{1000 * rate.share:.3g} ({1000 * low:.3g}-{1000 * high:.3g})"
