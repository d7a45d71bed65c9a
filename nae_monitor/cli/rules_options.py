"""What the ``rules`` commands have in common: which rules, which encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nae_monitor.cli.terminal import quiet_libraries
from nae_monitor.settings import DetectSettings

if TYPE_CHECKING:
    from nae_monitor.detect import Encoder, RuleSet

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
CorpusOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--corpus", help="Recordings, or text (one explanation a line) or JSONL files of them."
    ),
]


def rules_at(paths: list[str] | None) -> list[str]:
    """The paths given, or the shipped pack."""
    return paths or ["builtin"]


def chosen_rules(rules: RuleSet, name: str | None) -> RuleSet:
    """The rules whose name holds ``name``; all without one.

    Raises:
        BadParameter: no rule's name does.
    """
    from nae_monitor.detect import RuleSet

    if name is None:
        return rules
    kept = [rule for rule in rules.rules if name in rule.name]
    if not kept:
        known = ", ".join(sorted(rule.name for rule in rules.rules))
        raise typer.BadParameter(f"no rule's name holds {name!r}; there are: {known}")
    return RuleSet.of(kept)


def encoder_or_none(models: bool, name: str) -> Encoder | None:
    """The sentence encoder, where models are wanted."""
    if not models:
        return None
    from nae_monitor.models import load_encoder

    quiet_libraries()
    return load_encoder(name)
