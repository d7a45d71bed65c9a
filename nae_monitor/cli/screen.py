"""``screen``: directions that every token is scored against."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.terminal import error_line, json_line, output, quiet_libraries
from nae_monitor.errors import InputDataError
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV, NlaSettings, TargetSettings

if TYPE_CHECKING:
    from nae_monitor.concepts import Backend, Built, LabelledRows, Ordinary
    from nae_monitor.decode import Nla
    from nae_monitor.screen import Directions, Pool

AR_BATCH = 16
PACKS = ("harm", "jailbreak", "injection")  # what the shipped set is compiled from
screen_app = typer.Typer(no_args_is_help=True, help="Directions that every token is scored by.")


class BackendName(StrEnum):
    """Where directions come from."""

    AR = "ar"
    CONTRAST = "contrast"
    PROBE = "probe"


@screen_app.command()
def build(
    activations: Annotated[
        Path, typer.Option(help="A collection: the activations folder of an `nla train` run.")
    ],
    rules: Annotated[
        list[str] | None,
        typer.Option(
            "--rules",
            "-r",
            help="Rule files or directories. Default: the packs harm, jailbreak and injection.",
        ),
    ] = None,
    backend: Annotated[
        BackendName,
        typer.Option(
            help="ar: from the rules' words by the reconstructor, no labels needed; contrast and "
            "probe: from the collection's hostile kinds, and from recordings."
        ),
    ] = BackendName.AR,
    recording: Annotated[
        list[str] | None,
        typer.Option(
            help="contrast and probe: learn from these recordings, too, a direction a rule from "
            "the rows whose decodes it matched. May be repeated."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="With --recording: what `alerts labels` prints. In requests that it names, "
            "matches of rules that it does not are ordinary."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path(
        "screen.safetensors"
    ),
    av: Annotated[str, typer.Option(help="Verbalizer: embedded/…, directory or hub id.")] = (
        EMBEDDED_AV
    ),
    ar: Annotated[str, typer.Option(help="Reconstructor, likewise.")] = EMBEDDED_AR,
    target: Annotated[str, typer.Option(help="The model whose rows these are.")] = (
        TargetSettings().model
    ),
    frames: Annotated[int, typer.Option(min=1, help="Ordinary explanations to build on.")] = 40,
    pool: Annotated[
        str,
        typer.Option(
            help="none, or ema:TOKENS or max:TOKENS: scores pooled over the last tokens; needs a "
            "collection of consecutive positions."
        ),
    ] = "none",
    anomaly_rank: Annotated[
        int,
        typer.Option(
            min=0, max=512, help="Axes of the distance from ordinary rows (score.anomaly); 0: none."
        ),
    ] = 32,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write directions for `screen.directions`, calibrated on ordinary rows of the collection.

    A direction is kept where it tells hostile from ordinary documents of the validation split
    better than random directions do; the figures printed are of the test split.
    """
    from nae_monitor.concepts import (
        Ordinary,
        against_chance,
        directions_of,
        only,
        read_collection,
        with_ordinary,
    )
    from nae_monitor.decode import load_nla
    from nae_monitor.models import resolve_nla, resolve_target
    from nae_monitor.models.nla import list_in_checksums
    from nae_monitor.screen import write_directions

    quiet_libraries()
    pooling = _pooling(pool)
    _check_recorded(backend, recording, labels)
    train = read_collection(activations, ["train"])
    validation = read_collection(activations, ["validation"])
    ordinary = Ordinary.of(train)
    settings = NlaSettings(av=av, ar=ar, batch_size=AR_BATCH)
    nla = load_nla(resolve_nla(av), resolve_nla(ar), settings=settings, resolve_base=resolve_target)
    recorded_rows = 0
    if recording:
        learnt, held = _recorded(recording, labels, nla, target)
        recorded_rows = len(learnt) + len(held)
        train, validation = train.and_also(learnt), validation.and_also(held)
    built = _built(backend, nla, train, ordinary, rules, frames, seed)
    beaten = against_chance(built, validation, seed=seed)
    axes = min(anomaly_rank, nla.d_model - 1)
    provenance = {
        "backend": backend.value,
        "nla_id": nla.nla_id,
        "seed": seed,
        "pool": pool,
        "anomaly_rank": axes,
        "ordinary_rows": [len(ordinary.fit), len(ordinary.scale)],
        "recordings": [Path(path).name for path in recording or ()],
        "recorded_rows": recorded_rows,
        "validation_auroc": {n: round(beaten.aurocs[n], 4) for n in beaten.kept},
        "random_auroc": round(beaten.chance, 4),
    }
    try:
        kept = only(built, beaten.kept)
        made = directions_of(
            kept,
            ordinary.scale,
            base_model=target,
            layer=nla.layer,
            provenance=provenance,
            pool=pooling,
        )
        if axes:
            made = with_ordinary(made, ordinary, axes)
    except ValueError as error:
        raise InputDataError(f"{activations}: makes no directions: {error}") from error
    write_directions(out, made)
    list_in_checksums(out)
    for name in sorted(set(built.names) - set(made.names)):
        error_line(f"{name}: no better than random directions, left out", "warning: ")
    if as_json:
        json_line({"file": str(out), "names": list(made.names), **provenance})
    else:
        _show(made, ordinary.scale, activations, out)


def _pooling(pool: str) -> Pool | None:
    from nae_monitor.screen import Pool

    try:
        return Pool.parse(pool)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--pool") from error


def _check_recorded(
    backend: BackendName, recordings: list[str] | None, labels: Path | None
) -> None:
    if recordings and backend is BackendName.AR:
        raise typer.BadParameter("needs --backend contrast or probe", param_hint="--recording")
    if labels is not None and not recordings:
        raise typer.BadParameter("needs --recording", param_hint="--labels")


def _recorded(
    recordings: list[str], labels: Path | None, nla: Nla, target: str
) -> tuple[LabelledRows, LabelledRows]:
    from nae_monitor.concepts import read_recorded
    from nae_monitor.detect.tools.expectations import read_expectations
    from nae_monitor.recording import open_recordings

    said = None if labels is None else read_expectations(labels, None)
    return read_recorded(
        open_recordings(recordings),
        model=target,
        layer=nla.layer,
        d_model=nla.d_model,
        labels=said,
    )


def _built(
    backend: BackendName,
    nla: Nla,
    train: LabelledRows,
    ordinary: Ordinary,
    rules: list[str] | None,
    frames: int,
    seed: int,
) -> Built:
    from nae_monitor.concepts import Whitening, build, concepts_of, frames_of, reconstruct_by
    from nae_monitor.detect import load_rules
    from nae_monitor.detect.sources import builtin_rules_directory

    whitening = Whitening.of(ordinary.fit)
    if backend is not BackendName.AR:
        return build(cast("Backend", backend.value), train, whitening, seed=seed)
    shipped = [str(builtin_rules_directory() / pack) for pack in PACKS]
    return build(
        "ar",
        train,
        whitening,
        concepts=concepts_of(load_rules(rules or shipped)),
        frames=frames_of(nla, ordinary.fit, frames, seed=seed),
        reconstruct=reconstruct_by(nla),
    )


def _show(made: Directions, ordinary: LabelledRows, activations: Path, out: Path) -> None:
    """Each direction beside chance, and the whole set on the test split."""
    from rich.table import Table

    from nae_monitor.concepts import evaluate, read_collection

    told = made.provenance
    table = Table(title=f"directions by {told['backend']}, layer {made.layer}: {out}")
    table.add_column("direction")
    table.add_column("AUROC, validation", justify="right")
    for name, auroc in told["validation_auroc"].items():
        table.add_row(name, f"{auroc:.3f}")
    table.add_row("random, 97.5 % quantile", f"{told['random_auroc']:.3f}", style="dim")
    output().print(table)
    try:
        test = read_collection(activations, ["test"])
    except InputDataError:
        output().print("The collection has no test split: the set is not measured.")
        return
    found = evaluate(made, ordinary, test)
    output().print(
        f"Together, on the test split: AUROC {found.auroc}; at a threshold that lets 1 % of the "
        f"ordinary training documents pass, {found.recall} of the hostile and "
        f"{found.false_positives} of the ordinary documents."
    )
