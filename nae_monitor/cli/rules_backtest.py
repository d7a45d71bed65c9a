"""``rules backtest``: how often each rule matches a corpus, and against what was expected."""

from __future__ import annotations

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nae_monitor.cli import rules_options as options
from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.rules_corpus import samples_at
from nae_monitor.cli.terminal import errors, json_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nae_monitor.detect import RuleSet
    from nae_monitor.detect.tools.journal import Journal


class Unexpected(StrEnum):
    """What hits that nobody expected lead to."""

    REPORT = "report"
    FAIL = "fail"


def backtest(
    paths: options.PathsArgument = None,
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
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Write verdicts to this file, and take them from it: an interrupted run goes on."
        ),
    ] = None,
    name: options.NameOption = None,
    models: options.ModelsOption = True,
    encoder: options.EncoderOption = options.DEFAULT_ENCODER,
    calibration: options.CalibrationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a corpus and print rates per 1,000 decodings and requests, with 95 % intervals.

    Aggregation rules are judged by request. Alerts are counted as suppression would have let them
    through, where the corpus knows when its texts were captured. Undecided samples are counted
    apart: they are not "no match". Exit code 1 where an expected match is missing, or with
    --unexpected fail where one is there that nobody expected.
    """
    from rich.progress import Progress

    from nae_monitor.cli.rules_backtest_view import backtest_as_json, print_backtest
    from nae_monitor.detect import Judge
    from nae_monitor.detect.tools.backtest import backtest as run
    from nae_monitor.detect.tools.expectations import read_expectations

    if not corpus:
        raise typer.BadParameter("name a corpus: --corpus DIR or FILE")
    chosen, model = options.rules_and_encoder(paths, name, models, encoder, members=True)
    scale, pair = options.calibration_of(calibration)
    wanted = read_expectations(expect, [rule.name for rule in chosen.every]) if expect else None
    depends_on = {
        "encoder": encoder if models else "",
        "calibration": scale.digest if scale else "",
    }
    kept = nullcontext() if resume is None else _journal(resume, chosen, depends_on)
    with kept as journal, Progress(console=errors(), transient=True) as bar:
        task = bar.add_task("samples", total=None)
        found = run(
            Judge(chosen, model, calibration=scale),
            samples_at(corpus, pair),
            wanted,
            lambda done: bar.update(task, completed=done),
            journal,
        )
    if journal is not None and journal.recalled:
        errors().print(f"{journal.recalled} of {found.samples} verdicts taken from {resume}")
    if as_json:
        json_line(backtest_as_json(found))
    else:
        print_backtest(found)
    if found.counts["missing"] or (unexpected is Unexpected.FAIL and found.counts["unexpected"]):
        raise typer.Exit(1)


def _journal(path: Path, rules: RuleSet, others: Mapping[str, str]) -> Journal:
    from nae_monitor.detect.tools.journal import Journal
    from nae_monitor.version import __version__

    depends_on = {"rules": rules.fingerprint, "version": __version__, **others}
    return Journal(path, depends_on)
