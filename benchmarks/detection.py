"""What a monitor finds in whole conversations, by how much it may decode.

Every row of prompt and reply is scored; decodes go to the rows that each way of choosing puts
first. A conversation's score is a small logistic model of what was seen of it, learnt on one part
of the conversations; its threshold lets 1 % of another, ordinary part pass; the figures are of a
third, whose near-duplicate families are in no other and which the pair was not trained on.
Baselines read the visible text, or score without decoding. Controls must fall to chance. Sorts of
other sources, injections and exam-like questions among them, are reported apart, at the same
thresholds.

Everything that costs time is kept under ``--cache`` by content: a run that was killed goes on from
there, and one seed gives one result. ``--minutes`` ends decoding early; cells of the curve that
are not whole by then are left out. The cache holds prompts and decoded texts: treat it as they are
treated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from detecting.apart_cases import ApartSizes, choose_apart
from detecting.choices import STAGES, Cell
from detecting.conversations import MANY, QUICK, Case, Sizes, choose, counts, kept
from detecting.decodes import Explainer, Journal, decode, identity, open_explainers
from detecting.evidence import AWARE, Readers, Remembering, Words, judge_decodes, judge_transcripts
from detecting.outcome import CLAIM_BUDGET
from detecting.panel import Evidence, Panel, read_texts
from detecting.results import Shown, results
from detecting.rows import Runner, Talk, collected, kept_rows, visible
from detecting.scoring import ThemeReader
from detecting.work import (
    Material,
    Report,
    deadline,
    prepare,
    rates,
    stages,
    stages_apart,
    untrained_keys,
    whole_cells,
)
from reporting.claims import Report as Outcome
from reporting.machine import describe
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run

from nae_monitor.decode.engines.fused import FusedDecoder
from nae_monitor.models import load_encoder, load_target, resolve_nla
from nae_monitor.models.encoder import Encoder
from nae_monitor.screen import read_directions
from nae_monitor.screen.directions import FILE_NAME
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV, EMBEDDED_ENCODER
from nae_monitor.train.held_out import recipe_of
from nae_monitor.train.lora import has_fast_bfloat16
from nae_monitor.train.recipe import Recipe

TALK_BATCH = 64
QUICK_MINUTES = 2.0
QUICK_CELLS = tuple(cell for cell in STAGES if cell.budget <= CLAIM_BUDGET)
TWIN_BEHIND = Cell("contrast", CLAIM_BUDGET)  # the control matters more than what comes next
NOTES = (
    "score: a logistic model of the fit part; threshold: 1 % of the threshold part pass it",
    "intervals by conversation, the threshold chosen anew in each round",
    "positions are chosen with the whole conversation in view: a live screen does not see its end",
    "other sources are shown apart where the whole curve and all their decodes are there",
    "from 8 decodes per 100 tokens on, a quarter of the conversations",
)


def main(
    cache: Annotated[Path, typer.Option(help="Where replies, rows and decodes are kept.")] = (
        Path("build") / "detection"
    ),
    activations: Annotated[
        Path | None,
        typer.Option(help="The recipe's own collection (nla train), to learn directions from."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Of decoding; then what there is is measured.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads, of one core each.")] = 2,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    picture: Annotated[
        Path | None, typer.Option("--plot", help="SVG or PNG file to draw the curve to.")
    ] = None,
    quick: QuickOption = False,
    json_file: JsonOption = None,
) -> None:
    """Measure detection; exit code 1 where a claim does not hold."""
    with clear_errors(json_file):
        torch.set_num_threads(1)
        machine = describe(seconds=0.2 if quick else 1.0)
        with progress() as report:
            setting = Setting(
                cache,
                QUICK_CELLS if quick else STAGES,
                QUICK_MINUTES if quick and minutes is None else minutes,
                workers,
                seed,
                activations,
            )
            recipe = recipe_of(resolve_nla(setting.av))
            report("choose conversations", 0, 1)
            sizes = _sizes(quick, activations is not None)
            place = cache / f"cases-{identity(repr(recipe), repr(sizes), str(seed))}.json"
            cases = kept(place, lambda: choose(recipe, sizes, seed))
            if not quick:  # a look stays at the curve
                apart = ApartSizes()
                place = cache / f"apart-{identity(repr(apart), str(seed))}.json"
                cases = [*cases, *kept(place, lambda: choose_apart(apart, seed))]
            report("choose conversations", 1, 1)
            evidence, told = gathered(setting, recipe, cases, report)
            shown: Shown = results(evidence, Panel(evidence.material), told, seed, picture, report)
        code = finish(Outcome(machine, shown.claims, shown.context), shown.tables, NOTES, json_file)
    raise typer.Exit(code)


def _sizes(quick: bool, has_rows: bool) -> Sizes:
    sizes = QUICK if quick else Sizes()
    return replace(sizes, directions=MANY) if has_rows else sizes


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run is made of."""

    cache: Path
    cells: Sequence[Cell]
    minutes: float | None
    workers: int
    seed: int
    activations: Path | None = None
    av: str = EMBEDDED_AV
    ar: str = EMBEDDED_AR


def gathered(
    setting: Setting,
    recipe: Recipe,
    cases: Sequence[Case],
    report: Report,
    encoder: Encoder | None = None,
) -> tuple[Evidence, dict[str, Any]]:
    """All evidence, and what else the results tell of."""
    av_dir, ar_dir = resolve_nla(setting.av), resolve_nla(setting.ar)
    runner = opened(recipe)
    cases, talks, tokens_per_s = conversed(runner, cases, setting, report)
    shown = shown_texts(runner, cases, talks)
    material = prepare(
        cases,
        talks,
        read_directions(ar_dir / FILE_NAME),
        base_model=recipe.target,
        layer=recipe.collect.layer,
        seed=setting.seed,
    )
    dtype = torch.bfloat16 if runner.options.autocast else torch.float32
    made_by = identity(runner.identity, av_dir, ar_dir, str(dtype))
    journal = Journal(setting.cache / f"decodes-{made_by}.jsonl")
    other = Journal(setting.cache / f"untrained-{made_by}.jsonl")
    explainer, twin = open_explainers(av_dir, ar_dir, setting.workers, dtype)
    explain(material, explainer, twin, journal, other, setting, report)
    encoder = encoder or load_encoder(EMBEDDED_ENCODER)
    known = setting.cache / f"sentences-{identity(encoder.fingerprint)}.safetensors"
    remembering = Remembering(encoder, known)
    readers = Readers(remembering)
    evidence, more = judged(
        material, readers, remembering, journal, other, shown, runner.target.tokenizer,
        setting.cache / f"{made_by}-{identity(readers.fingerprint, remembering.fingerprint)}",
        setting.workers, report,
    )  # fmt: skip
    remembering.keep()
    per_s, tokens = rates(journal.found)
    told = more | {
        "conversations": counts(material.cases),
        "cells": [c for c in whole_cells(material, journal) if c in setting.cells],
        "decodes": len(journal.found),
        "target_tokens_per_s_of_a_worker": tokens_per_s,
        "explanations_per_s_of_a_worker": per_s,
        "tokens_per_explanation": tokens,
        "texts": shown,
        "journal": journal.found,
    }
    return evidence, told


def opened(recipe: Recipe) -> Runner:
    """The target as the recipe's own collection runs it."""
    fast = has_fast_bfloat16(torch.device("cpu"))
    options = replace(
        recipe.collect,
        batch_size=TALK_BATCH,
        max_batches=None,
        autocast=fast,
    )
    target = load_target(recipe.target)
    model = load_target(recipe.target, dtype=torch.bfloat16).model if fast else target.model
    return Runner(target, FusedDecoder(model), options)


def conversed(
    runner: Runner, cases: Sequence[Case], setting: Setting, report: Report
) -> tuple[list[Case], dict[str, Talk], float]:
    """Conversations that have rows, their rows, and the target's tokens a second of a worker."""
    known: dict[str, Talk] = {}
    if setting.activations is not None:
        learn = [case for case in cases if case.part == "directions"]
        known = kept_rows(setting.activations, learn, runner.target.tokenizer, runner.options)
        cases = [case for case in cases if case.part != "directions" or case.digest in known]
    place, workers = setting.cache / "talks", setting.workers
    missing = [case for case in cases if case.digest not in known and case.part != "apart"]
    talks, tokens_per_s = collected(runner, missing, place, workers, report)
    # In batches of their own, so that the curve does not depend on them.
    apart = [case for case in cases if case.part == "apart"]
    more, _ = collected(runner, apart, place, workers, report)
    return list(cases), known | talks | more, tokens_per_s


def shown_texts(
    runner: Runner, cases: Sequence[Case], talks: Mapping[str, Talk]
) -> dict[str, tuple[str, str]]:
    """Prompt and reply as a reader sees them, by conversation."""
    tokenizer, limit = runner.target.tokenizer, runner.options.prompt_tokens
    return {c.digest: visible(c, talks[c.digest], tokenizer, limit) for c in cases}


def explain(
    material: Material,
    explainer: Explainer,
    twin: Callable[[], Explainer],
    journal: Journal,
    other: Journal,
    setting: Setting,
    report: Report,
) -> None:
    """Decode as much as there is time for; the untrained twin once the small budgets are done."""
    until_s = deadline(setting.minutes)
    keys = untrained_keys(material)
    done: list[Cell] = []
    for cell in stages(material, explainer, journal, setting.cells, until_s=until_s, report=report):
        if cell == TWIN_BEHIND and any(key not in other.found for key in keys):
            decode(
                twin(), keys, material.vector, other, until_s=until_s,
                report=lambda done, total: report("decode untrained", done, total),
            )  # fmt: skip
        done.append(cell)
    if len(done) == len(setting.cells):
        stages_apart(material, explainer, journal, setting.cells, until_s=until_s, report=report)


def judged(
    material: Material,
    readers: Readers,
    encoder: Remembering,
    journal: Journal,
    other: Journal,
    shown: Mapping[str, tuple[str, str]],
    tokenizer: Any,
    place: Path,
    workers: int,
    report: Report,
) -> tuple[Evidence, dict[str, Any]]:
    """Rules and encoder over all decodes and transcripts."""
    matched = Journal(place.with_name(f"rules-{place.name}.jsonl"))
    matched_twin = Journal(place.with_name(f"rules-untrained-{place.name}.jsonl"))
    matched_text = Journal(place.with_name(f"rules-text-{place.name}.jsonl"))
    judge_transcripts(
        readers,
        {c.digest: shown[c.digest] for c in material.cases if c.part != "directions"},
        matched_text,
        workers,
        lambda done, total: report("rules on transcripts", done, total),
    )
    for found, place_of in ((journal, matched), (other, matched_twin)):
        judge_decodes(
            readers, found.found, material.talks, shown, tokenizer, place_of, workers,
            lambda done, total: report("rules on decodes", done, total),
        )  # fmt: skip
    aware = Journal(place.with_name(f"rules-aware-{place.name}.jsonl"))
    apart = {c.digest for c in material.cases if c.part == "apart"}
    decodes = {key: one for key, one in journal.found.items() if key[0] in apart}
    judge_decodes(
        Readers(encoder, AWARE), decodes, material.talks, shown, tokenizer, aware, workers
    )
    words = Words.of(readers.rules, encoder)
    fit = {case.digest: case.hostile for case in material.fitted}
    reader = ThemeReader.learnt(
        {key: one["text"] for key, one in journal.found.items() if key[0] in fit},
        fit,
        encoder,
        words,
    )
    signs = reader.signs(journal.found, matched.found, readers.pack_of)
    seen = read_texts(material, shown, matched_text.found, readers.pack_of, encoder, words)
    twin_signs = reader.signs(other.found, matched_twin.found, readers.pack_of)
    evidence = Evidence(material, signs, seen)
    return evidence, {"twin": twin_signs, "matched": matched.found, "aware": aware.found}


if __name__ == "__main__":
    run(main)
