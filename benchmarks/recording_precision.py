"""What recording vectors in float16 instead of float32 does to their decodes, embedded pair.

Hidden states of held-out ordinary messages are taken in float32, as the model computes them here,
and decoded greedily as they are and as a float16 recording gives them back, batch by batch in turn.
FVE is taken against what was decoded, so a change of it is the decoder's, not the rounding's.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import typer
from message_decodes import HELD_OUT, chosen
from reporting.claims import Bound, Claim, Report, verdict
from reporting.machine import describe
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run
from rich.table import Table

from nae_monitor.decode import Nla, load_nla
from nae_monitor.models import load_target, resolve_nla, resolve_target
from nae_monitor.records import Decoding
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV, NlaSettings
from nae_monitor.train.held_out import recipe_of
from nae_monitor.train.intervals import Clusters, Measure

BATCH = 16
POSITIONS = 4  # of each message, evenly spread
FIRST_POSITION = 10
MIN_SAME_TEXTS, MAX_FVE_LOST = Bound(0.9), Bound(0.01, at_most=True)
NOTES = (
    "intervals by a bootstrap over messages; greedy decoding, float32 on the CPU",
    "a recording in float16 takes half the bytes of one in float32",
)


def vectors_of(messages: int, seed: int) -> tuple[torch.Tensor, list[str], float]:
    """Hidden states [n, d] in float32, the message each is of, and the largest element."""
    recipe = recipe_of(resolve_nla(EMBEDDED_AV))
    target = load_target(recipe.target)
    found, names = [], []
    for document, _ in chosen(recipe, False, HELD_OUT)[seed : seed + messages]:
        ids = target.tokenizer(document.text, return_tensors="pt", truncation=True, max_length=256)
        length = int(ids["input_ids"].shape[1])
        if length <= FIRST_POSITION:
            continue
        with torch.inference_mode():
            states = target.model(**ids, output_hidden_states=True).hidden_states
        places = np.unique(np.linspace(FIRST_POSITION, length - 1, POSITIONS).round().astype(int))
        found.append(states[recipe.collect.layer][0, places.tolist()].float())
        names += [document.digest] * len(places)
    vectors = torch.cat(found)
    return vectors, names, float(vectors.abs().max())


def decoded(
    nla: Nla, vectors: torch.Tensor, report: object
) -> tuple[list[Decoding], list[Decoding]]:
    """Each vector as it is, and as float16 gives it back."""
    kept: tuple[list[Decoding], list[Decoding]] = ([], [])
    for number, batch in enumerate(vectors.split(BATCH)):
        pairs = list(enumerate((batch, batch.half().float())))
        for side, variant in pairs if number % 2 else pairs[::-1]:
            kept[side].extend(nla.decode(variant))
        report("decode", min((number + 1) * BATCH, len(vectors)), len(vectors))  # type: ignore[operator]
    return kept


def claims_of(
    whole: list[Decoding], half: list[Decoding], names: list[str], seed: int
) -> list[Claim]:
    """Texts that stay the same, and what becomes of FVE."""
    clusters = Clusters.by_document(names, seed)
    same = np.array([a.text == b.text for a, b in zip(whole, half, strict=True)], float)
    known = [(a.fve, b.fve) for a, b in zip(whole, half, strict=True)]
    change = np.array([float(b or 0.0) - float(a or 0.0) for a, b in known])
    return [
        _claim(clusters.mean("identical greedy texts, share", same), MIN_SAME_TEXTS),
        _claim(clusters.mean("FVE in float32, mean", np.array([float(a or 0) for a, _ in known]))),
        _claim(clusters.mean("FVE lost in float16, mean", -change), MAX_FVE_LOST),
        _claim(clusters.mean("FVE change, mean of sizes", np.abs(change))),
    ]


def _claim(measure: Measure, bound: Bound | None = None) -> Claim:
    return Claim(measure.name, measure.value, measure.low, measure.high, measure.unit, bound)


def table_of(claims: list[Claim], rows: int) -> Table:
    """One row a claim."""
    table = Table(title=f"float16 against float32 recordings, {rows} vectors")
    table.add_column("measure")
    for name in ("value", "95 % interval", "must reach", "holds"):
        table.add_column(name, justify="right")
    for claim in claims:
        known = np.isfinite(claim.low)
        table.add_row(
            claim.name,
            f"{claim.value:.4g}",
            f"{claim.low:.4g} to {claim.high:.4g}" if known else "",
            str(claim.bound) if claim.bound else "",
            verdict(claim),
        )
    return table


def main(
    messages: Annotated[int, typer.Option(min=1, help="Held-out messages.")] = 64,
    seed: Annotated[int, typer.Option(help="Which messages, and of the bootstrap.")] = 0,
    quick: QuickOption = False,
    json_file: JsonOption = None,
) -> None:
    """Decode vectors in both precisions; exit code 1 where a claim does not hold."""
    with clear_errors(json_file):
        machine = describe(seconds=0.2 if quick else 1.0)
        vectors, names, largest = vectors_of(8 if quick else messages, seed)
        nla = load_nla(
            resolve_nla(EMBEDDED_AV),
            resolve_nla(EMBEDDED_AR),
            settings=NlaSettings(),
            resolve_base=resolve_target,
        )
        with progress() as report:
            whole, half = decoded(nla, vectors, report)
        claims = claims_of(whole, half, names, seed)
        claims.append(Claim("largest element of a vector (float16 ends at 65504)", largest))
        notes = (*NOTES, f"messages: {len(set(names))}")
        code = finish(Report(machine, claims), [table_of(claims, len(names))], notes, json_file)
    raise typer.Exit(code)


if __name__ == "__main__":
    run(main)
