"""``rules bench``: what rules cost."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Annotated

import typer

from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.rules_corpus import samples_at
from nae_monitor.cli.rules_options import (
    DEFAULT_ENCODER,
    CorpusOption,
    EncoderOption,
    NameOption,
    PathsArgument,
    chosen_rules,
    encoder_or_none,
    rules_at,
)
from nae_monitor.cli.terminal import json_line, output

if TYPE_CHECKING:
    from nae_monitor.detect.tools.bench import Cost


def bench(
    paths: PathsArgument = None,
    corpus: CorpusOption = None,
    name: NameOption = None,
    texts: Annotated[int, typer.Option(min=1, help="At most so many texts.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Times each text is judged.")] = 5,
    budget_us: Annotated[
        float | None, typer.Option(min=0, help="Most microseconds a text for any one rule, p99.")
    ] = None,
    set_budget_us: Annotated[
        float | None, typer.Option(min=0, help="Most microseconds a text for all rules, p99.")
    ] = None,
    models: Annotated[bool, typer.Option(help="Load the sentence encoder, and time it.")] = False,
    encoder: EncoderOption = DEFAULT_ENCODER,
    as_json: JsonOption = False,
) -> None:
    """Time the set and each rule alone, on a corpus or the bundled ordinary texts.

    Exit code 1 where a budget is not kept.
    """
    from nae_monitor.detect import load_rules
    from nae_monitor.detect.lint.subject import benign_texts
    from nae_monitor.detect.tools.bench import bench as run
    from nae_monitor.detect.tools.corpus import sample_of

    chosen = chosen_rules(load_rules(rules_at(paths)), name)
    source = (
        samples_at(corpus)
        if corpus
        else (sample_of({"explanation": text}, str(i)) for i, text in enumerate(benign_texts()))
    )
    samples = list(itertools.islice(source, texts))
    whole, *rules = run(chosen, samples, encoder_or_none(models, encoder), rounds)
    over = [cost.name for cost in rules if budget_us is not None and cost.p99_us > budget_us]
    if set_budget_us is not None and whole.p99_us > set_budget_us:
        over.insert(0, whole.name)
    if as_json:
        costs = [dataclasses.asdict(cost) for cost in (whole, *rules)]
        json_line({"costs": costs, "over_budget": over})
    else:
        _print([whole, *rules], over)
    if over:
        raise typer.Exit(1)


def _print(costs: list[Cost], over: list[str]) -> None:
    from rich.table import Table

    table = Table("rule", box=None, pad_edge=False)
    for heading in ("texts", "p50 µs", "p99 µs"):
        table.add_column(heading, justify="right")
    for cost in costs:
        row = (str(cost.texts), f"{cost.p50_us:.1f}", f"{cost.p99_us:.1f}")
        table.add_row(cost.name, *row, style="bold red" if cost.name in over else "")
    output().print(table)
    if over:
        output().print(f"over budget: {', '.join(over)}")
