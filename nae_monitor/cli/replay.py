"""``replay`` and ``report``: recordings judged again, and their HTML."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nae_monitor.cli.configuration import ConfigOption, JsonOption, settings_from
from nae_monitor.cli.replay_view import print_run, run_json
from nae_monitor.cli.terminal import error_line, errors, json_line, output, quiet_libraries

if TYPE_CHECKING:
    from nae_monitor.health import Health
    from nae_monitor.parts import Parts
    from nae_monitor.recording import Recording
    from nae_monitor.replay import Decoder, Judge, ReplayRun
    from nae_monitor.replay.decoding import Mode
    from nae_monitor.replay.judging import Elsewhere
    from nae_monitor.settings import Settings

CPU_BATCH = 128  # vectors decoded together: twice as fast as 16, and 256 are hardly faster


def replay(
    recordings: Annotated[
        list[str],
        typer.Argument(
            help="Recordings, directories of them, or Parquet files with vectors; paths or URLs."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the new run.")],
    config: ConfigOption = None,
    where: Annotated[
        str | None,
        typer.Option(
            help="Only rows that fit, such as: tenant = acme and time >= 2026-10-01. Fields: "
            "request, group, session, tenant, model, phase, position, layer, time, rule (one that "
            "found something in the request). Operators: = != < <= > >= in and or not ( )."
        ),
    ] = None,
    redecode: Annotated[bool, typer.Option("--redecode", help="Decode every row again.")] = False,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Decode nothing: judge recorded decodings anew.")
    ] = False,
    decode_missing: Annotated[
        bool, typer.Option("--decode-missing", help="Decode rows that were dropped live, too.")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Vectors decoded together. Default: {CPU_BATCH} on the CPU, else nla.batch_size.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Decode on a Ray cluster: its address, auto, or local for one on this machine."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="A run or recording to compare findings with; exit 1 if they differ."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge recordings again with the rules and the NLA of a configuration.

    The same configuration gives the findings of the recording, byte for byte. Rows whose
    decoding was recorded in the clear are not decoded again unless --redecode is given.
    A replay that was broken off goes on where it had come to when the same command is given
    again, and the run is the same, byte for byte.
    """
    if redecode + rescore + decode_missing > 1:
        raise typer.BadParameter("give one of --redecode, --rescore and --decode-missing")
    settings = settings_from(config)
    opened = _opened(recordings, against, where)
    never_live = all(not recording.manifest for recording in opened)
    mode: Mode = "missing" if decode_missing or never_live else "live"
    mode = "redecode" if redecode else "rescore" if rescore else mode
    elsewhere = None
    together = batch_size or _decoded_together(settings)
    if ray is not None:
        elsewhere = _workers(ray, recordings, settings, mode, together, where, opened)
    try:
        run = _replay(recordings, out, settings, mode, together, where, elsewhere)
    except (KeyboardInterrupt, OSError):
        error_line("stopped; give the same command again to go on from here", "")
        raise
    if _tell(run, out, against, as_json):
        raise typer.Exit(1)


def _decoded_together(settings: Settings) -> int:
    """How many vectors; nobody waits for the first of them, so as many as fill the processor.

    On the CPU a text does not depend on what is decoded beside it, and memory is the host's.
    """
    import torch

    nla = settings.nla
    on_cpu = nla.device == "cpu" or (nla.device == "auto" and not torch.cuda.is_available())
    local = nla.engine == "torch" and on_cpu
    return max(nla.batch_size, CPU_BATCH) if local else nla.batch_size


def _with_batch(settings: Settings, batch_size: int) -> Settings:
    """Settings whose engine takes ``batch_size`` vectors at once."""
    nla = settings.nla
    return replace(settings, nla=replace(nla, batch_size=max(nla.batch_size, batch_size)))


def _opened(recordings: list[str], against: str | None, where: str | None) -> list[Recording]:
    """The recordings; what is wrong with any argument shows before minutes go into loading."""
    from nae_monitor.recording import open_recordings
    from nae_monitor.replay.where import parse_where

    if where is not None:
        parse_where(where)
    opened = open_recordings(recordings)
    if against is not None:
        open_recordings([against])
    return opened


def _tell(run: ReplayRun, out: Path, against: str | None, as_json: bool) -> bool:
    """Print what the run came to; whether its findings differ from those of ``against``."""
    from nae_monitor.replay import breakdown, compare

    comparison = compare(against, out) if against is not None else None
    rates = breakdown(against, out) if against is not None else []
    if as_json:
        json_line(run_json(run, comparison, rates))
    else:
        print_run(run, comparison, rates)
    return comparison is not None and not comparison.identical


def _replay(
    recordings: list[str],
    out: Path,
    settings: Settings,
    mode: Mode,
    batch_size: int,
    where: str | None,
    elsewhere: Elsewhere | None,
) -> ReplayRun:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from nae_monitor.detect import Correlator
    from nae_monitor.health import Health
    from nae_monitor.monitor import content_key, load_parts
    from nae_monitor.replay import replay as replay_recordings

    quiet_libraries()
    health = Health()
    parts = load_parts(_with_batch(settings, batch_size), health)
    columns = (
        "rows",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=errors(), transient=True) as bar:
        task = bar.add_task("rows", total=None)
        return replay_recordings(
            recordings,
            out,
            decoder=parts.decoder,
            judge=parts.judge,
            correlate=Correlator(lambda: parts.rules, health),
            suppress=parts.rules.suppressions(),
            mode=mode,
            where=where,
            identity=_identity(settings),
            elsewhere=elsewhere,
            batch_size=batch_size,
            health=health,
            progress=lambda done, rows: bar.update(task, completed=done, total=rows),
            model=settings.target.model,
            manifest=_manifest(parts, mode),
            hmac_key=content_key(settings.privacy),
        )


@dataclass(frozen=True, slots=True)
class _Stages:
    """The decoder and the judge of a configuration, and its key, loaded where it is called."""

    settings: Settings

    def load(self, health: Health) -> tuple[Decoder, Judge]:
        from nae_monitor.parts import load_parts

        parts = load_parts(self.settings, health)
        return parts.decoder, parts.judge

    def key(self) -> bytes | None:
        return os.environ.get(self.settings.privacy.key_env, "").encode() or None


def _workers(
    address: str,
    recordings: list[str],
    settings: Settings,
    mode: Mode,
    batch_size: int,
    where: str | None,
    opened: list[Recording],
) -> Elsewhere:
    from nae_monitor.recording.privacy import ContentFilter
    from nae_monitor.replay.cluster import Job, workers
    from nae_monitor.replay.plan import common_content

    content = common_content(opened)
    stages = _Stages(_with_batch(settings, batch_size))
    paths = tuple(one if "://" in one else str(Path(one).absolute()) for one in recordings)
    key_id = ContentFilter(content, stages.key()).key_id
    job = Job(paths, stages.load, mode, batch_size, where, content, stages.key, key_id)
    gpus = float(settings.nla.device == "cuda")
    return workers(job, address=None if address == "local" else address, gpus_each=gpus)


def _manifest(parts: Parts, mode: Mode) -> dict[str, Any]:
    """Facts of the run; where nothing is decoded, what the recording says of its decodes stands."""
    decoded = {} if mode == "rescore" else {"nla_weights": parts.nla_weights}
    return {"rules_sha256": parts.rules.fingerprint, **decoded}


def _identity(settings: Settings) -> dict[str, Any]:
    """Names what the decoder and the judge are made of."""
    parts = repr((settings.target, settings.nla, settings.detect)).encode()
    return {"settings_sha256": hashlib.sha256(parts).hexdigest()}


def report(
    run: Annotated[Path, typer.Argument(help="A recording or a replayed run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path(
        "report.html"
    ),
) -> None:
    """Write the self-contained HTML report of a recording or a replayed run."""
    from nae_monitor.replay import write_report

    write_report(run, out)
    output().print(f"report: {out}", soft_wrap=True)
