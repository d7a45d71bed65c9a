"""What the ``rules`` commands have in common: which rules, which encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from nae_monitor.cli.terminal import quiet_libraries
from nae_monitor.settings import EMBEDDED_AR, DetectSettings

if TYPE_CHECKING:
    from nae_monitor.detect import AggregationRule, Calibration, Encoder, Rule, RuleSet

_OneRule = TypeVar("_OneRule", bound="Rule | AggregationRule")

DEFAULT_ENCODER = DetectSettings().encoder or ""
PathsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Rule files or directories; without one, the shipped pack (builtin)."),
]
RulesOption = Annotated[
    list[str] | None,
    typer.Option("--rules", "-r", help="Rule files or directories. Default: the shipped pack."),
]
ModelsOption = Annotated[
    bool, typer.Option(help="Load the sentence encoder for semantic selections.")
]
EncoderOption = Annotated[
    str, typer.Option(help="The sentence encoder: embedded/… or a directory.")
]
NameOption = Annotated[
    str | None, typer.Option("-k", help="Only rules whose name holds this text.")
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        help="Calibration set for percentiles, as `nla calibrate` writes it; also for decodes "
        "that name no pair. Default: the embedded pair's, for decodes that name that pair."
    ),
]
CorpusOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--corpus", help="Recordings, or text (one explanation a line) or JSONL files of them."
    ),
]


def rules_at(paths: list[str] | None) -> list[str]:
    """The paths given, or the shipped pack."""
    return paths or ["builtin"]


def rule_count(number: int) -> str:
    """A number of rules in words."""
    return f"{number} rule{'s' * (number != 1)}"


def chosen_rules(rules: RuleSet, name: str | None, *, members: bool = False) -> RuleSet:
    """The rules and aggregation rules whose name holds ``name``; all without one.

    With ``members`` also the rules that chosen aggregation rules count: they cannot fire without.

    Raises:
        BadParameter: no rule's name does.
    """
    from nae_monitor.detect import RuleSet

    if name is None:
        return rules
    aggregations = [rule for rule in rules.aggregations if name in rule.name]
    counted = {n for rule in aggregations for n in (*rule.rules, *rule.absent) if members}
    kept = [rule for rule in rules.rules if name in rule.name or rule.name in counted]
    if not kept and not aggregations:
        known = ", ".join(sorted(rule.name for rule in rules.every))
        raise typer.BadParameter(f"no rule's name holds {name!r}; there are: {known}")
    return RuleSet.of(kept, aggregations)


def rule_named(rules: Sequence[_OneRule], name: str) -> _OneRule:
    """The rule of that name or id.

    Raises:
        BadParameter: there is none; names the nearest.
    """
    from nae_monitor.strict_yaml import nearest

    for rule in rules:
        if name in (rule.name, rule.id):
            return rule
    raise typer.BadParameter(f"no rule {name!r}: {nearest(name, [rule.name for rule in rules])}")


def rules_and_encoder(
    paths: list[str] | None, name: str | None, models: bool, encoder: str, *, members: bool = False
) -> tuple[RuleSet, Encoder | None]:
    """What most commands need: the chosen rules, and the encoder where they ask for one."""
    from nae_monitor.detect import load_rules

    chosen = chosen_rules(load_rules(rules_at(paths)), name, members=members)
    asked = any(rule.semantic_selections() for rule in chosen.rules)
    return chosen, encoder_or_none(models and asked, encoder)


def encoder_or_none(models: bool, name: str) -> Encoder | None:
    """The sentence encoder, where models are wanted."""
    if not models:
        return None
    from nae_monitor.models import load_encoder

    quiet_libraries()
    return load_encoder(name)


def calibration_of(file: Path | None) -> tuple[Calibration | None, str]:
    """The calibration set, and the pair of decodes that name none ("": not known).

    A file that was named is meant for whatever is read; the set that the embedded pair ships holds
    for decodes that name that pair.

    Raises:
        ConfigurationError: a file that is not there or is no calibration set.
    """
    from nae_monitor.detect.calibration import read_calibration, shipped_calibration
    from nae_monitor.models import resolve_nla

    if file is None:
        return shipped_calibration(resolve_nla(EMBEDDED_AR)), ""
    found = read_calibration(file)
    return found, found.nla_id
