"""Whether P(unsupported) means what it says: calibration, ranking and risk on held-out claims.

Fitted on the validation split and measured on the test split of the pair's own corpus, on claims
that strings can check. One position a document; several texts a position are drawn, which takes
most of the time and is kept: a run whose minutes are over measures what there is, and the next one
goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from confabulation.checked import check, thinned
from confabulation.compared import Comparison, compare
from confabulation.drawn import SAMPLES, Drawn, Progress, draw
from confabulation.tables import claims_of, tables
from reporting.claims import Report
from reporting.machine import describe
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run

from nae_monitor.decode import load_nla
from nae_monitor.decode.support import (
    ClaimType,
    SupportCalibration,
    SupportModel,
    read_support,
    write_support,
)
from nae_monitor.decode.support.recurrence import REACH
from nae_monitor.errors import InputDataError
from nae_monitor.models import cache_directory, load_target, resolve_nla, resolve_target
from nae_monitor.models.nla import list_in_checksums
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV, NlaSettings
from nae_monitor.train.held_out import recipe_of
from nae_monitor.train.splits import split_corpus
from nae_monitor.train.themes import KINDS

FITTED, MEASURED = "validation", "test"
QUICK_DOCUMENTS = 60
MINUTES, QUICK_MINUTES = 12.0, 2.0
BATCH = 32


def main(
    av: Annotated[str, typer.Option(help="Verbalizer: directory, hub id or embedded name.")] = (
        EMBEDDED_AV
    ),
    ar: Annotated[str, typer.Option(help="Reconstructor, likewise.")] = EMBEDDED_AR,
    documents: Annotated[int, typer.Option(min=1, help="Of each split, at most.")] = 200,
    texts: Annotated[
        Path | None, typer.Option(help="Where drawn texts are kept; the cache if not given.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write the fit to this file, and list its checksum.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Of drawing texts; 12, with --quick 2.")
    ] = None,
    quick: QuickOption = False,
    json_file: JsonOption = None,
) -> None:
    """Print how good P(unsupported) is; exit code 1 where it is not as good as claimed."""
    with clear_errors(json_file):
        machine = describe(seconds=0.2 if quick else 1.0)
        size = min(documents, QUICK_DOCUMENTS) if quick else documents
        if minutes is None:
            minutes = QUICK_MINUTES if quick else MINUTES
        until_s = time.monotonic() + 60 * minutes
        with progress() as report:
            halves = resolve_nla(av), resolve_nla(ar)
            nla_id, seed, drawn = _drawn(*halves, size, texts, until_s, report)
        models, found = _compared(drawn, seed)
        if not found:
            message = f"{len(drawn)} documents hold too few claims of any type to fit"
            raise InputDataError(f"{message}; run it again, and it draws more")
        if write is not None:
            calibration = _calibration(nla_id, drawn, models)
            write_support(write, calibration)
            list_in_checksums(write)
            read_support(write)
        code = finish(
            Report(machine, claims_of(found), {"nla_id": nla_id, "documents": len(drawn)}),
            tables(found),
            _notes(drawn),
            json_file,
        )
    raise typer.Exit(code)


def _drawn(
    av: Path, ar: Path, size: int, texts: Path | None, until_s: float, report: Progress
) -> tuple[str, int, list[Drawn]]:
    recipe = recipe_of(ar)
    every = split_corpus(recipe)
    halves = [[(d, s) for d, s in every if s == name][:size] for name in (FITTED, MEASURED)]
    # By turns, so that a run that is stopped has drawn as much of either.
    chosen = [pair for both in zip(*halves, strict=False) for pair in both]
    place = texts or cache_directory() / "support" / f"{recipe.nla_id}.jsonl"
    place.parent.mkdir(parents=True, exist_ok=True)
    settings = NlaSettings(batch_size=BATCH)
    nla = load_nla(av, ar, settings=settings, resolve_base=resolve_target)
    target = load_target(recipe.target)
    options = replace(recipe.collect, autocast=False, max_batches=None)
    drawn = draw(
        nla,
        target.model,
        target.tokenizer,
        chosen,
        options,
        place,
        seed=recipe.seed,
        progress=report,
        until_s=until_s,
    )
    return nla.nla_id, recipe.seed, drawn


def _compared(
    drawn: Sequence[Drawn], seed: int
) -> tuple[dict[ClaimType, SupportModel], list[Comparison]]:
    fitting = [one for one in drawn if one.split == FITTED]
    fitted, fewer = check(fitting), check(thinned(fitting))
    measured = check([one for one in drawn if one.split == MEASURED])
    models: dict[ClaimType, SupportModel] = {}
    found: list[Comparison] = []
    for kind in ClaimType:
        own, again, others = (
            [c for c in part if c.type is kind] for part in (fitted, fewer, measured)
        )
        result = compare(kind, own, again, others, seed)
        if result is not None:
            models[kind] = result[0]
            found.append(result[1])
    return models, found


def _calibration(
    nla_id: str, drawn: Sequence[Drawn], models: dict[ClaimType, SupportModel]
) -> SupportCalibration:
    fitting = [one for one in drawn if one.split == FITTED]
    provenance: dict[str, Any] = {
        "split": FITTED,
        "documents": len(fitting),
        "samples": SAMPLES,
        "sample_temperature": 1.0,
        "neighbours_to_either_side": REACH,
    }
    labels = tuple(sorted(kind.label for kind in KINDS.values()))
    return SupportCalibration(nla_id, labels, models, provenance)


def _notes(drawn: Sequence[Drawn]) -> list[str]:
    seconds = sum(one.sample_s for one in drawn) / max(1, len(drawn))
    return [
        f"{len(drawn)} documents, of which {sum(one.split == FITTED for one in drawn)} to fit on.",
        f"{SAMPLES} further texts and {2 * REACH} neighbours of each; a text took {seconds:.2f} s.",
        "A theme is true where it names the kind that the document's source has: one of twenty.",
        "Quoted words and tokens are checked in the document up to the position, so that at run "
        "time they need no estimate.",
    ]


if __name__ == "__main__":
    run(main)
