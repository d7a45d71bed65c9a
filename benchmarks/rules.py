"""What matching costs: all selections of a rule set compiled together, beside the plain loop.

1,000 literals, 200 patterns and 200 fuzzy phrases against texts of 500 characters, then ten times
as many, one thread. Both ways must find the same on texts with planted hits; the fuzzy prefilter
must let through what the plain score finds in planted phrases with edits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated

import numpy as np
import typer
from matching.ways import Compiled, Way, expected_selections, interleaved, naive
from matching.workload import Workload, edited, make_texts, make_workload
from rapidfuzz import fuzz
from reporting.claims import Bound, Claim, Report, verdict
from reporting.machine import describe
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run
from rich.table import Table
from speed.windows import median

from nae_monitor.detect.matching.phrases import Phrase, PhraseIndex

BOUNDS_MS = {1: Bound(0.40, at_most=True), 10: Bound(1.5, at_most=True)}
BOUNDS_TIMES = {1: Bound(75), 10: Bound(250)}
TIMED_TEXTS = {1: 60, 10: 40}
WARM_UP_TEXTS = 100
RECALL, RECALL_SCORE = Bound(0.999), 85.0
NOTES = (
    "processor time of one thread, the ways in turn on ten texts; every hit is located",
    "plain loop: re.search a literal and a pattern, rapidfuzz partial_ratio a phrase",
    "agreement and recall are of planted texts and have no interval",
)
Reporter = Callable[[str, int, int], None]


def measure(size: int, texts: int, planted: int, seed: int, report: Reporter) -> list[Claim]:
    """Both ways on ``texts`` ordinary texts, and their agreement on ``planted`` others."""
    work = make_workload(size, seed)
    plain, compiled = naive(work), Compiled(work)
    label = f"{len(work.literals):,} literals, {len(work.patterns):,} + {len(work.phrases):,}"
    ordinary = make_texts(work, texts, seed + 1, planted=False)
    warm_up = make_texts(work, WARM_UP_TEXTS, seed + 3, planted=False)
    ways = {"plain": plain, "compiled": compiled.find}
    taken = interleaved(ways, ordinary, warm_up, report)
    return [
        median(f"{label}: compiled", taken["compiled"], "ms", BOUNDS_MS.get(size)),
        median(f"{label}: plain loop", taken["plain"], "ms"),
        median(
            f"{label}: plain over compiled",
            taken["plain"] / taken["compiled"],
            "x",
            BOUNDS_TIMES.get(size),
        ),
        Claim(f"{label}: compile", compiled.build_s, unit="s"),
        agreement(
            label, work, (plain, compiled), make_texts(work, planted, seed + 2, planted=True)
        ),
    ]


def agreement(label: str, work: Workload, ways: tuple[Way, Compiled], texts: list[str]) -> Claim:
    """The share of ``texts`` on which both ways hit the same selections."""
    plain, compiled = ways
    same = [expected_selections(work, plain(t)) == compiled.selections(t) for t in texts]
    return Claim(f"{label}: agreement", float(np.mean(same)), unit="of texts", bound=Bound(1.0))


def prefilter_recall(count: int, seed: int) -> Claim:
    """Of planted phrases with 0 to 4 edits at a score of 85 or more, the share let through."""
    chance = random.Random(seed)
    work = make_workload(1, seed)
    texts = make_texts(work, 200, seed, planted=False)
    kept = true = 0
    for number in range(count):
        phrase = work.phrases[number % len(work.phrases)]
        text = texts[number % len(texts)].lower()
        place = chance.randrange(len(text))
        text = f"{text[:place]} {edited(phrase, chance.randrange(5), chance)} {text[place:]}"
        if fuzz.partial_ratio(phrase, text) >= RECALL_SCORE:
            true += 1
            kept += bool(PhraseIndex([Phrase(phrase, RECALL_SCORE, False)]).candidates(text))
    recall = kept / true if true else float("nan")
    return Claim(f"fuzzy prefilter recall, {true:,} true pairs", recall, bound=RECALL)


def table_of(claims: list[Claim]) -> Table:
    """One row a claim."""
    table = Table(title="matching all selections of a rule set, 500-character texts")
    table.add_column("measure: literals, patterns + phrases")
    for name in ("value", "95 % interval", "must reach", "holds"):
        table.add_column(name, justify="right")
    for claim in claims:
        known = np.isfinite(claim.low)
        table.add_row(
            claim.name,
            f"{claim.value:.4g} {claim.unit}".strip(),
            f"{claim.low:.4g} to {claim.high:.4g}" if known else "",
            str(claim.bound) if claim.bound else "",
            verdict(claim),
        )
    return table


def main(
    seed: Annotated[int, typer.Option(help="Of the made-up rules and texts.")] = 0,
    quick: QuickOption = False,
    json_file: JsonOption = None,
) -> None:
    """Time matching and check it; exit code 1 where a claim does not hold."""
    with clear_errors(json_file):
        machine = describe(seconds=0.2 if quick else 1.0)
        claims: list[Claim] = []
        with progress() as report:
            for size, texts in TIMED_TEXTS.items():
                count = texts // 4 if quick else texts
                claims += measure(size, count, count, seed, report)
        claims.append(prefilter_recall(500 if quick else 5_000, seed))
        code = finish(Report(machine, claims), [table_of(claims)], NOTES, json_file)
    raise typer.Exit(code)


if __name__ == "__main__":
    run(main)
