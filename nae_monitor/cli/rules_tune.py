"""``rules tune``: what to change in a rule so that it keeps its true positives only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nae_monitor.cli import rules_options as options
from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.rules_corpus import samples_at
from nae_monitor.cli.terminal import json_line, output, printable

if TYPE_CHECKING:
    from nae_monitor.detect.tools.tune import Proposal, Tuning

SHOWN_IDS = 5


def tune(
    rule: Annotated[str, typer.Argument(help="Name or id of the rule.")],
    wrong: Annotated[
        list[Path],
        typer.Option("--fp", help="False positives: recordings, .txt or .jsonl files."),
    ],
    right: Annotated[
        list[Path],
        typer.Option("--tp", help="True positives, which must keep matching."),
    ],
    rules: options.RulesOption = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Proposals shown.")] = 8,
    models: options.ModelsOption = True,
    encoder: options.EncoderOption = options.DEFAULT_ENCODER,
    calibration: options.CalibrationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Propose thresholds, negatives, gates, exceptions and removals; nothing is written.

    Each proposal was tried: it keeps every true positive given and every inline test of the rule.
    It fits the samples given, so give many, and backtest the changed rule on others. Exit code 1
    where false positives are left with all proposals together.
    """
    from nae_monitor.detect import load_rules
    from nae_monitor.detect.tools.tune import tune as run

    loaded = load_rules(options.rules_at(rules))
    chosen = options.rule_named(loaded.rules, rule)
    model = options.encoder_or_none(models and bool(chosen.semantic_selections()), encoder)
    scale, pair = options.calibration_of(calibration)
    samples = samples_at(wrong, pair), samples_at(right, pair)
    found = run(chosen, *samples, model, calibration=scale)
    if as_json:
        json_line(_as_json(found))
    else:
        _print(found, most)
    if found.left:
        raise typer.Exit(1)


def _as_json(found: Tuning) -> dict[str, Any]:
    return {
        "rule": found.rule.name,
        "false_positives": list(found.false_positives),
        "true_positives": found.true_positives,
        "missed": list(found.missed),
        "proposals": [_proposal(proposal) for proposal in found.proposals],
        "together": [_proposal(proposal) for proposal in found.together],
        "left": list(found.left),
    }


def _proposal(proposal: Proposal) -> dict[str, Any]:
    return {
        "kind": proposal.candidate.kind,
        "what": proposal.candidate.what,
        "yaml": proposal.candidate.snippet,
        "takes": list(proposal.takes),
    }


def _print(found: Tuning, most: int) -> None:
    console = output()
    total = len(found.false_positives)
    console.print(
        f"{found.rule.name}: matches {total} false positives and {found.true_positives} true ones"
    )
    if found.missed:
        line = f"{len(found.missed)} true positives do not match as it is: {_ids(found.missed)}"
        console.print(line, soft_wrap=True)
    if not total:
        return
    for proposal in found.proposals[:most]:
        line = f"takes {len(proposal.takes)} of {total}: {proposal.candidate.what}"
        console.print(printable(line), soft_wrap=True)
    if len(found.proposals) > most:
        console.print(f"and {len(found.proposals) - most} more; --most shows them")
    if found.together:
        console.print(f"together ({total - len(found.left)} of {total}):")
        for proposal in found.together:
            head = f"# {proposal.candidate.what}: takes {len(proposal.takes)}"
            snippet = f"{head}\n{proposal.candidate.snippet.rstrip()}"
            console.print(printable(snippet), soft_wrap=True)
    if found.left:
        line = f"{len(found.left)} left: {_ids(found.left)}"
        console.print(printable(line), soft_wrap=True)


def _ids(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return printable(", ".join(ids[:SHOWN_IDS]) + more)
