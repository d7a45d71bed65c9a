"""``rules``: check, test, explain, compare and measure rule packs; one file a command."""

from __future__ import annotations

import typer

from nae_monitor.cli.rules_backtest import backtest
from nae_monitor.cli.rules_bench import bench
from nae_monitor.cli.rules_coverage import coverage
from nae_monitor.cli.rules_diff import diff
from nae_monitor.cli.rules_explain import explain
from nae_monitor.cli.rules_fmt import fmt
from nae_monitor.cli.rules_lint import lint
from nae_monitor.cli.rules_lock import lock
from nae_monitor.cli.rules_schema import schema
from nae_monitor.cli.rules_test import run_tests
from nae_monitor.cli.rules_tune import tune

rules_app = typer.Typer(
    no_args_is_help=True, help="Rule packs: check, test, explain, compare and measure them."
)
rules_app.command("lint")(lint)
rules_app.command("fmt")(fmt)
rules_app.command("test")(run_tests)
rules_app.command("explain")(explain)
rules_app.command("backtest")(backtest)
rules_app.command("diff")(diff)
rules_app.command("tune")(tune)
rules_app.command("coverage")(coverage)
rules_app.command("bench")(bench)
rules_app.command("lock")(lock)
rules_app.command("schema")(schema)
