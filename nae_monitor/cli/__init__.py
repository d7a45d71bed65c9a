"""The command line: one file a verb group; errors become one clear line and an exit code.

Exit codes: 0 done, 1 findings or failed checks, 2 bad usage or configuration, 3 bad input data,
130 interrupted. Modules here import what is heavy inside their commands, so that ``--help`` is
instant.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from nae_monitor.cli.alerts import alerts_app
from nae_monitor.cli.demo import demo
from nae_monitor.cli.doctor import doctor
from nae_monitor.cli.generate import generate
from nae_monitor.cli.nla import nla_app
from nae_monitor.cli.record import record_app
from nae_monitor.cli.replay import replay, report
from nae_monitor.cli.rules import rules_app
from nae_monitor.cli.screen import screen_app
from nae_monitor.cli.terminal import error_line, errors
from nae_monitor.cli.worker import worker
from nae_monitor.errors import ConfigurationError, NaeMonitorError

INTERRUPTED = 130
# typer brings its own click; this is the root of its usage errors, wherever it lives
UsageFault: type[Exception] = next(
    cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException"
)

app = typer.Typer(
    name="nae-monitor",
    help="Reads what a deployed language model is computing, in English, and raises alerts on it.",
    epilog="Exit codes: 0 done, 1 findings or failed checks, 2 bad usage or configuration, "
    "3 bad input data, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Options before the command; ``--debug`` is read by :func:`run`, wherever it stands."""
    if version:
        from nae_monitor.version import __version__

        typer.echo(__version__)
        raise typer.Exit


app.command()(demo)
app.command()(generate)
app.command()(replay)
app.command()(report)
app.command()(worker)
app.command()(doctor)
app.add_typer(record_app, name="record")
app.add_typer(rules_app, name="rules")
app.add_typer(nla_app, name="nla")
app.add_typer(screen_app, name="screen")
app.add_typer(alerts_app, name="alerts")


def main() -> None:
    """Entry point of ``nae-monitor``."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code and lets no exception but SystemExit out.

    With ``--debug`` anywhere on the line an error keeps its traceback.
    """
    debug = "--debug" in arguments
    try:
        code = app(
            args=[a for a in arguments if a != "--debug"],
            prog_name="nae-monitor",
            standalone_mode=False,
        )
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the outermost boundary
        if debug:
            errors().print_exception()
        return _explain(error)
    if code == INTERRUPTED:
        error_line("interrupted", prefix="")
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int:
    """One line a problem on standard error; the exit code."""
    if isinstance(error, ConfigurationError) and error.problems:
        for problem in error.problems:
            error_line(str(problem))
        return error.exit_code
    if isinstance(error, NaeMonitorError):
        for line in str(error).splitlines() or [type(error).__name__]:
            error_line(line)
        return error.exit_code
    if isinstance(error, UsageFault):
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if message:  # none where the help was just shown instead
            error_line(message)
        return 2
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        error_line(f"{name}{error.strerror}")
        return 2
    # The message is not shown: it could quote a prompt.
    error_line(f"unexpected {type(error).__name__}; run again with --debug for the traceback")
    return 1
