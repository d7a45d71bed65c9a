"""``rules explain``: why a rule matched a text, or why it did not."""

from __future__ import annotations

import dataclasses
import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.rules_corpus import samples_at
from nae_monitor.cli.rules_explain_view import print_explanation
from nae_monitor.cli.rules_options import (
    DEFAULT_ENCODER,
    EncoderOption,
    ModelsOption,
    RulesOption,
    encoder_or_none,
    rules_at,
)
from nae_monitor.cli.terminal import json_line
from nae_monitor.errors import InputDataError

if TYPE_CHECKING:
    from nae_monitor.detect import Encoder, Rule, RuleSet
    from nae_monitor.detect.tools.corpus import Sample
    from nae_monitor.detect.tools.explain import Explanation, Step

MAX_TEXT_CHARS = 4 * 1024 * 1024
WORDS = {True: "pass", False: "fail", None: "unknown"}


def explain(
    rule: Annotated[str, typer.Argument(help="Name or id of the rule.")],
    text: Annotated[
        str,
        typer.Option(
            help="The explanation; - reads it from standard input; @DIR[#REQUEST:POSITION] takes "
            "it from a recording (without a place: the first row that matches, else the first)."
        ),
    ],
    prompt: Annotated[str, typer.Option(help="The prompt rules see.")] = "",
    reply: Annotated[str, typer.Option("--output", help="The output rules see.")] = "",
    fve: Annotated[
        float | None, typer.Option(help="Fraction of variance explained. Default: full.")
    ] = None,
    unscored: Annotated[bool, typer.Option("--unscored", help="The FVE is not known.")] = False,
    rules: RulesOption = None,
    models: ModelsOption = True,
    encoder: EncoderOption = DEFAULT_ENCODER,
    as_json: JsonOption = False,
) -> None:
    """Show every part of a rule's condition with its answer and what it found where.

    Exit code 0 for a match, 1 for none or undecided.
    """
    from nae_monitor.detect import load_rules
    from nae_monitor.detect.tools.explain import explain as run

    chosen = _rule(load_rules(rules_at(rules)), rule)
    model = encoder_or_none(models and bool(chosen.semantic_selections()), encoder)
    if text.startswith("@"):
        sample = _recorded(chosen, text[1:], model)
    else:
        from nae_monitor.detect.tools.corpus import sample_of

        shown = sys.stdin.read(MAX_TEXT_CHARS) if text == "-" else text
        figure = None if unscored else 1.0 if fve is None else fve
        fields = {"explanation": shown.strip(), "prompt": prompt, "output": reply, "fve": figure}
        sample = sample_of(_in_scope(chosen) | fields, "text")
    found = run(chosen, sample, model, datetime.datetime.now(datetime.UTC).date())
    if as_json:
        json_line(_as_json(found, sample))
    else:
        print_explanation(found, sample)
    if found.outcome != "match":
        raise typer.Exit(1)


def _rule(rules: RuleSet, name: str) -> Rule:
    from nae_monitor.strict_yaml import nearest

    for rule in rules.rules:
        if name in (rule.name, rule.id):
            return rule
    known = [rule.name for rule in rules.rules]
    raise typer.BadParameter(f"no rule {name!r}: {nearest(name, known)}")


def _in_scope(rule: Rule) -> dict[str, Any]:
    """Circumstances that a bare text lacks, such that the rule looks at it."""
    scope = rule.scope
    return {
        "phase": scope.phases[-1].value if scope.phases else "completion",
        "position": max(1_000, scope.min_token_index),
        "layer": scope.layers[0] if scope.layers else 0,
        "model": scope.models[0] if scope.models else "",
    }


def _recorded(rule: Rule, place: str, encoder: Encoder | None) -> Sample:
    """The row at ``DIR#REQUEST:POSITION``; without a place the first match, else the first row."""
    from nae_monitor.detect.tools.explain import explain as run

    directory, _, wanted = place.partition("#")
    first: Sample | None = None
    for sample in samples_at([Path(directory)]):
        if wanted and sample.id == wanted:
            return sample
        if not wanted:
            first = first or sample
            if run(rule, sample, encoder).outcome == "match":
                return sample
    if first is None:
        raise InputDataError(f"{directory}: holds no readable decoding {wanted}".rstrip())
    return first


def _as_json(found: Explanation, sample: Sample) -> dict[str, Any]:
    return {
        "rule": found.rule.name,
        "version": found.rule.version,
        "sample": sample.id,
        "outcome": found.outcome,
        "held_by": found.held_by,
        "severity": found.severity.value if found.severity else None,
        "condition": _step(found.condition),
        "selections": [
            dataclasses.asdict(report) | {"answer": WORDS[report.answer]}
            for report in found.selections
        ],
        "exceptions": [
            dataclasses.asdict(exception) | {"answer": WORDS[exception.answer]}
            for exception in found.exceptions
        ],
        "fidelity": {
            "metric": found.metric,
            "figure": found.figure,
            "min": found.minimum,
        },
    }


def _step(step: Step) -> dict[str, Any]:
    value: dict[str, Any] = {"text": step.text, "answer": WORDS[step.answer]}
    if step.parts:
        value["parts"] = [_step(part) for part in step.parts]
    return value
