"""``record``: make recordings, take requests out of them, and write them as tables."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from nae_monitor.cli.configuration import ConfigOption, JsonOption
from nae_monitor.cli.generate import PromptsOption, TokensOption, WaitOption, record_prompts
from nae_monitor.cli.terminal import json_line, output

record_app = typer.Typer(invoke_without_command=True)
_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


@record_app.callback()
def record(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory to write recordings into.")
    ] = None,
    config: ConfigOption = None,
    prompts: PromptsOption = "-",
    max_new_tokens: TokensOption = 128,
    wait_s: WaitOption = 120.0,
    as_json: JsonOption = False,
) -> None:
    """As generate, and record the activations; print where the recording is.

    What the recording holds of prompts and replies follows the privacy setting.
    """
    if context.invoked_subcommand is not None:
        return
    if out is None:
        raise typer.BadParameter("name a directory to write recordings into: --out DIR")
    record_prompts(out, config, prompts, max_new_tokens, wait_s, as_json)


@record_app.command()
def erase(
    recordings: Annotated[
        list[Path], typer.Argument(help="Recordings and replayed runs, or directories of them.")
    ],
    request: Annotated[
        list[str] | None, typer.Option(help="A request id, or that of a group. May be repeated.")
    ] = None,
    tenant: Annotated[list[str] | None, typer.Option(help="A tenant. May be repeated.")] = None,
    older_than: Annotated[
        str | None,
        typer.Option(help="Requests whose latest turn began longer ago: 12h, 30d, 4w."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take requests out of recordings for good: rows, vectors, texts, findings, stops, alerts.

    A request that fits any of the options goes whole. Broken off, it is finished by the same
    command; until then the recording is refused by readers. A run that was replayed from a
    recording is a copy: name it, too. Backups and copies elsewhere are out of reach.

    Of an orphan, the rows were lost in a crash and findings, stops or alerts are left. It goes with
    any tenant, or where its id has the named one in it; others stay and are counted as left. The
    progress of a replay that was broken off always goes.
    """
    from nae_monitor.recording import Doomed, erase_all

    before = None if older_than is None else _before_unix_ns(older_than)
    if not (request or tenant or before is not None):
        raise typer.BadParameter("name what is to go: --request, --tenant or --older-than")
    doomed = Doomed(tuple(request or ()), tuple(tenant or ()), before)
    for erased in erase_all(recordings, doomed, dry_run=dry_run):
        counts = {
            "requests": erased.requests,
            "activations": erased.activations,
            "records": erased.records,
            "findings": erased.findings,
            "stops": erased.stops,
            "alerts": erased.alerts,
            "orphans": erased.orphans,
            "orphans_left": erased.orphans_left,
            "replays": erased.replays,
        }
        if as_json:
            json_line({"recording": str(erased.directory), "dry_run": dry_run, **counts})
        else:
            told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
            verb = "would erase" if dry_run else "erased"
            output().print(f"{erased.directory}: {verb} {told}", soft_wrap=True)


@record_app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A recording or a replayed run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the tables.")],
    kind: Annotated[
        Literal["csv", "json", "parquet"], typer.Option("--format", help="Kind of files.")
    ] = "parquet",
    as_json: JsonOption = False,
) -> None:
    """Write requests, activations (without vectors) and findings as flat tables."""
    from nae_monitor.recording import export as export_tables

    for path, rows in export_tables(run, out, kind).items():
        if as_json:
            json_line({"file": str(path), "rows": rows})
        else:
            output().print(f"{path}: {rows} rows", soft_wrap=True)


def _before_unix_ns(text: str) -> int:
    match = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if match is None:
        raise typer.BadParameter(f"--older-than {text}: a number and h, d or w, such as 30d")
    return time.time_ns() - int(match[1]) * _SECONDS[match[2]] * 10**9
