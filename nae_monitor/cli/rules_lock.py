"""``rules lock``: no rule changes under its version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nae_monitor.cli.rules_options import PathsArgument, rule_count, rules_at
from nae_monitor.cli.terminal import error_line, output


def lock(
    paths: PathsArgument = None,
    file: Annotated[Path, typer.Option(help="The lock file.")] = Path("rules.lock.json"),
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing; fail where the lock file is out of date."),
    ] = False,
) -> None:
    """Write each rule's version and content hash, or check them.

    Exit code 1, and nothing is written, where a rule changed and its version was not raised: what
    it says, or a vector that it compares activations with. Tests may change freely.
    """
    from nae_monitor.detect import load_rules
    from nae_monitor.detect.tools.lock import (
        lock_faults,
        lock_of,
        lock_text,
        missing_directions,
        read_lock,
    )

    loaded = load_rules(rules_at(paths))
    locked = read_lock(file) if check or file.exists() else {}
    now = lock_of(loaded, locked)
    for line in missing_directions(loaded):
        error_line(line, "warning: ")
    faults = lock_faults(locked, now)
    if check and not faults and locked != now:
        faults = [f"{file}: out of date; write it anew with `rules lock`"]
    for fault in faults:
        error_line(fault)
    if faults:
        raise typer.Exit(1)
    if not check:
        file.write_text(lock_text(now), encoding="utf-8")
    output().print(
        f"{rule_count(len(now))} {'as locked' if check else 'locked'}: {file}", soft_wrap=True
    )
