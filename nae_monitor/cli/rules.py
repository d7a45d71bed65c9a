"""``rules``: check, test, explain, compare and measure rule packs; one file a command."""

from __future__ import annotations

import typer

from nae_monitor.cli.rules_lint import lint
from nae_monitor.cli.rules_test import run_tests

rules_app = typer.Typer(
    no_args_is_help=True, help="Rule packs: check, test, explain, compare and measure them."
)
rules_app.command("lint")(lint)
rules_app.command("test")(run_tests)
