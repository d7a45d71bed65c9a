"""``worker``: decode, judge and alert for serving processes that ship their activations."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from nae_monitor.cli.configuration import ConfigOption, settings_from
from nae_monitor.cli.terminal import error_line, errors, quiet_libraries


def worker(
    config: ConfigOption = None,
    number: Annotated[
        int, typer.Option(min=0, help="Which of ipc.endpoints is this worker's, from 0.")
    ] = 0,
    deadline_s: Annotated[
        float, typer.Option("--deadline-s", min=0, help="For what is left, once told to end.")
    ] = 10.0,
    alive_file: Annotated[
        Path | None,
        typer.Option(help="Touched each second while the worker takes what comes, for probes."),
    ] = None,
) -> None:
    """Decode, judge and alert for serving processes whose capture.placement is ipc or kafka.

    Runs until SIGTERM or Ctrl-C, works off what came for --deadline-s, and exits with 1 where
    something was left undone. A second signal ends it at once.
    """
    from nae_monitor.errors import ConfigurationError, Mark, Problem

    settings = settings_from(config)
    placement = settings.capture.placement
    if placement == "inline":
        place = Mark(f"capture.placement {placement}")
        mend = "set capture.placement to ipc or kafka, for this worker and for the servers"
        raise ConfigurationError([Problem(place, "needs no worker", mend)])
    quiet_libraries()
    from nae_monitor.placement.worker import open_worker

    one = open_worker(settings, number=number, console=errors(), alive_file=alive_file)

    def end(signum: int, frame: object) -> None:
        signal.signal(signum, signal.SIG_DFL)
        one.stop()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, end)
    done = one.run(lambda: error_line(f"ready at {one.endpoint}", "worker: "), deadline_s)
    if not done:
        error_line("not everything was worked off or delivered in time", "warning: ")
        raise typer.Exit(1)
