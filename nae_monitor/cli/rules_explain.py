"""``rules explain``: why a rule matched a text, or why it did not."""

from __future__ import annotations

import dataclasses
import datetime
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nae_monitor.cli import rules_options as options
from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.rules_corpus import samples_at
from nae_monitor.cli.rules_explain_view import print_explanation
from nae_monitor.cli.rules_explain_windows import (
    fate_line,
    print_windows,
    windows_as_json,
)
from nae_monitor.cli.terminal import json_line, output
from nae_monitor.errors import InputDataError

if TYPE_CHECKING:
    from nae_monitor.detect import AggregationRule, Calibration, Encoder, Rule, RuleSet
    from nae_monitor.detect.tools.alerting import Alerted
    from nae_monitor.detect.tools.corpus import Sample
    from nae_monitor.detect.tools.explain import Explanation, Step

MAX_TEXT_CHARS = 4 * 1024 * 1024
WORDS = {True: "pass", False: "fail", None: "unknown"}


def explain(
    rule: Annotated[str, typer.Argument(help="Name or id of the rule.")],
    text: Annotated[
        str,
        typer.Option(
            help="The explanation; - reads it from standard input; @PATH[#REQUEST:POSITION] takes "
            "it from a recording or a .jsonl file (without a place: the first row that matches, "
            "else the first). Aggregation rules look at all rows of @PATH, or at one #REQUEST."
        ),
    ],
    prompt: Annotated[str, typer.Option(help="The prompt rules see.")] = "",
    reply: Annotated[str, typer.Option("--output", help="The output rules see.")] = "",
    fve: Annotated[
        float | None, typer.Option(help="Fraction of variance explained. Default: full.")
    ] = None,
    unscored: Annotated[bool, typer.Option("--unscored", help="The FVE is not known.")] = False,
    rules: options.RulesOption = None,
    models: options.ModelsOption = True,
    encoder: options.EncoderOption = options.DEFAULT_ENCODER,
    calibration: options.CalibrationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every part of a rule's condition with its answer and what it found where.

    Of an aggregation rule, the window it came nearest in. Of a row of a recording, whether
    suppression held its alert back. Exit code 0 for a match, 1 for none or undecided.
    """
    from nae_monitor.detect import AggregationRule, load_rules

    loaded = load_rules(options.rules_at(rules))
    chosen = options.rule_named(loaded.every, rule)
    model = options.encoder_or_none(models and _needs_encoder(loaded, chosen), encoder)
    means = _Means(model, *options.calibration_of(calibration))
    fields = {"prompt": prompt, "output": reply, "fve": 1.0 if fve is None else fve}
    if unscored:
        fields["fve"] = None
    if isinstance(chosen, AggregationRule):
        matched = _explain_windows(loaded, chosen, means, text, fields, as_json)
    else:
        matched = _explain_row(chosen, means, text, fields, as_json)
    if not matched:
        raise typer.Exit(1)


@dataclass(frozen=True, eq=False, slots=True)
class _Means:
    """What a rule is judged with besides its text."""

    encoder: Encoder | None
    calibration: Calibration | None
    pair: str  # of decodes that name none


def _needs_encoder(rules: RuleSet, chosen: Rule | AggregationRule) -> bool:
    """Whether the rule, or a rule that it counts, has a semantic selection."""
    counted = {chosen.name, *getattr(chosen, "rules", ()), *getattr(chosen, "absent", ())}
    return any(rule.semantic_selections() for rule in rules.rules if rule.name in counted)


def _explain_row(
    rule: Rule, means: _Means, text: str, fields: dict[str, Any], as_json: bool
) -> bool:
    from nae_monitor.detect.tools.alerting import alert_among
    from nae_monitor.detect.tools.explain import explain as run

    alerted: Alerted | None = None
    if text.startswith("@"):
        sample = _recorded(rule, text[1:], means)
        if rule.suppress is not None:
            directory = Path(text[1:].partition("#")[0])
            others = samples_at([directory], means.pair)
            alerted = alert_among(rule, sample, others, means.encoder, means.calibration)
    else:
        sample = _written(_in_scope(rule) | {"nla_id": means.pair}, text, fields)
    today = datetime.datetime.now(datetime.UTC).date()
    found = run(rule, sample, means.encoder, today, means.calibration)
    suppression = fate_line(rule.suppress, alerted)
    if as_json:
        fate = None if alerted is None else alerted.fate
        json_line(_as_json(found, sample) | {"suppression": suppression, "alert": fate})
    else:
        print_explanation(found, sample)
        if suppression:
            output().print(suppression, soft_wrap=True)
    return found.outcome == "match"


def _explain_windows(
    rules: RuleSet,
    rule: AggregationRule,
    means: _Means,
    text: str,
    fields: dict[str, Any],
    as_json: bool,
) -> bool:
    from nae_monitor.detect.tools.explain_windows import explain_aggregation

    wanted = ""
    if text.startswith("@"):
        directory, _, wanted = text[1:].partition("#")
        samples = samples_at([Path(directory)], means.pair)
    else:
        samples = iter([_written({"nla_id": means.pair}, text, fields)])
    found = explain_aggregation(rules, rule, samples, means.encoder, wanted, means.calibration)
    if as_json:
        json_line(windows_as_json(found))
    else:
        print_windows(found)
    return found.outcome.value == "match"


def _written(circumstances: dict[str, Any], text: str, fields: dict[str, Any]) -> Sample:
    """A text given on the command line or on standard input."""
    from nae_monitor.detect.tools.corpus import sample_of

    shown = sys.stdin.read(MAX_TEXT_CHARS) if text == "-" else text
    return sample_of(circumstances | fields | {"explanation": shown.strip()}, "text")


def _in_scope(rule: Rule) -> dict[str, Any]:
    """Circumstances that a bare text lacks, such that the rule looks at it."""
    scope = rule.scope
    return {
        "phase": scope.phases[-1].value if scope.phases else "completion",
        "position": max(1_000, scope.min_token_index),
        "layer": scope.layers[0] if scope.layers else 0,
        "model": scope.models[0] if scope.models else "",
    }


def _recorded(rule: Rule, place: str, means: _Means) -> Sample:
    """The row at ``DIR#REQUEST:POSITION``; without a place the first match, else the first row."""
    from nae_monitor.detect.tools.explain import explain as run

    directory, _, wanted = place.partition("#")
    first: Sample | None = None
    for sample in samples_at([Path(directory)], means.pair):
        if wanted and sample.id == wanted:
            return sample
        if not wanted:
            first = first or sample
            found = run(rule, sample, means.encoder, calibration=means.calibration)
            if found.outcome == "match":
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
