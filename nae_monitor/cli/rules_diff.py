"""``rules diff``: what changed between two rule sets, and what they find differently."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.rules_corpus import samples_at
from nae_monitor.cli.rules_options import (
    DEFAULT_ENCODER,
    CalibrationOption,
    CorpusOption,
    EncoderOption,
    ModelsOption,
    calibration_of,
    encoder_or_none,
)
from nae_monitor.cli.terminal import json_line, output, printable

if TYPE_CHECKING:
    from nae_monitor.detect.tools.difference import RuleChange, VerdictChange

SHOWN = 20
SHOWN_CHARS = 60


def diff(
    old: Annotated[str, typer.Argument(help="Rule file or directory, or builtin.")],
    new: Annotated[str, typer.Argument(help="Rule file or directory, or builtin.")],
    corpus: CorpusOption = None,
    models: ModelsOption = True,
    encoder: EncoderOption = DEFAULT_ENCODER,
    calibration: CalibrationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare rule sets by rule id; with --corpus also what each finds in it.

    Exit code 1 where they differ.
    """
    from nae_monitor.detect import Judge, load_rules
    from nae_monitor.detect.tools.difference import rule_changes, verdict_changes

    before, after = load_rules([old]), load_rules([new])
    changes = rule_changes(before, after)
    verdicts: list[VerdictChange] = []
    if corpus:
        model = encoder_or_none(models, encoder)
        scale, pair = calibration_of(calibration)
        was, now = (Judge(rules, model, calibration=scale) for rules in (before, after))
        verdicts = verdict_changes(was, now, samples_at(corpus, pair))
    if as_json:
        json_line(_as_json(changes, verdicts if corpus else None))
    else:
        _print(changes, verdicts if corpus else None)
    if changes or verdicts:
        raise typer.Exit(1)


def _as_json(changes: list[RuleChange], verdicts: list[VerdictChange] | None) -> dict[str, Any]:
    return {
        "rules": [
            {
                "kind": change.kind,
                "id": change.rule_id,
                "rule": change.rule_name,
                "version_raised": change.version_raised,
                "keys": [
                    {"key": key, "old": _plain(was), "new": _plain(now)}
                    for key, was, now in change.keys
                ],
            }
            for change in changes
        ],
        "verdicts": None if verdicts is None else [dataclasses.asdict(v) for v in verdicts],
    }


def _plain(value: Any) -> Any:
    """JSON knows no days: they and what else YAML made become text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _print(changes: list[RuleChange], verdicts: list[VerdictChange] | None) -> None:
    console = output()
    for change in changes:
        note = "" if change.version_raised else " (under the same version)"
        console.print(f"{change.kind}: {change.rule_name}{note}")
        for key, was, now in change.keys:
            line = f"  {key}: {_cut(was)} -> {_cut(now)}"
            console.print(printable(line), soft_wrap=True)
    if not changes:
        console.print("the rules say the same")
    if verdicts is None:
        return
    counts = Counter(verdict.kind for verdict in verdicts)
    console.print(
        f"verdicts: {counts['new']} new, {counts['lost']} lost, {counts['changed']} changed"
    )
    for verdict in verdicts[:SHOWN]:
        weights = " -> ".join(weight or "nothing" for weight in (verdict.old, verdict.new))
        line = f"  {verdict.kind}: {verdict.sample_id} {verdict.rule_name}: {weights}"
        console.print(printable(line), soft_wrap=True)
    if len(verdicts) > SHOWN:
        console.print(f"  and {len(verdicts) - SHOWN} more; --json lists them")


def _cut(value: Any) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"
