"""The configuration a command runs under."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nae_monitor.settings import Settings

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="The YAML configuration. Without it: the embedded default."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def settings_from(config: Path | None) -> Settings:
    """The settings of a file, or the embedded default."""
    return Settings() if config is None else Settings.from_yaml(config)
