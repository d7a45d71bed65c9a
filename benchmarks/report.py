"""How fast the HTML report opens, and how fast it answers, at 100,000 tokens in a Chromium.

Each page is opened in a window of its own, sizes in turn within every round, so that what else
the machine does falls on all of them alike. Opening ends when the frame after the load event has
been painted; searching, colouring and unfolding end with the frame that shows what came of them.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from reporting.claims import Bound, Claim, Report, verdict
from reporting.machine import describe
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run
from rich.table import Table
from speed.windows import median

from nae_monitor.recording import RecordingWriter, RequestRecord
from nae_monitor.records import (
    Activation,
    Coverage,
    Decoding,
    Finding,
    FindingState,
    Phase,
    Request,
    SampleReason,
    Severity,
    Span,
    VerdictState,
)
from nae_monitor.replay import write_report

TOKENS, QUICK_TOKENS = 100_000, 10_000
ROUNDS, QUICK_ROUNDS = 9, 3
SHORT_TOKENS = 128  # of a conversation, where there are many
EVERY = 3  # tokens from one row to the next
LAYER, D_MODEL = 20, 8
WORDS = ("mill", "river", "stands", "beside", "grain", "ground", "water", "year", "people")
MAX_OPEN_S, MAX_ANSWER_S = Bound(2.0, at_most=True), Bound(0.5, at_most=True)
MAX_BYTES_A_TOKEN = Bound(250, at_most=True)
FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
PAINTED = (
    "window.painted = new Promise(done => addEventListener('load', () => requestAnimationFrame("
    "() => requestAnimationFrame(() => done(performance.now() / 1000)))));"
)
SEARCH = (
    "async () => { const t = performance.now(); const f = document.getElementById('f-text');"
    " f.value = 'keylogger'; f.dispatchEvent(new Event('input', {bubbles: true}));"
    f" await {FRAME}; const s = performance.now() - t; f.value = '';"
    " f.dispatchEvent(new Event('input', {bubbles: true})); return s / 1000; }"
)
COLOUR = (
    "async () => { const t = performance.now();"
    " document.querySelector('[name=mode][value=fidelity]').click();"
    f" await {FRAME}; return (performance.now() - t) / 1000; }}"
)
UNFOLD = (
    "async () => { document.getElementById('c0').scrollIntoView({behavior: 'instant'});"
    f" await {FRAME}; await {FRAME}; const more = document.querySelector('.more');"
    " if (!more) return null; const t = performance.now(); more.click();"
    f" await {FRAME}; return (performance.now() - t) / 1000; }}"
)
NOTES = (
    f"conversations of {SHORT_TOKENS} tokens, or one of all; every {EVERY}rd token decoded, "
    "1 of 40 decodes with a finding",
    "medians over rounds, intervals by a bootstrap over them; a headless Chromium, files on disk",
    "the search is the first one, which also reads all texts together",
)


@dataclass(frozen=True, slots=True)
class Size:
    """One page."""

    name: str
    tokens: int
    conversation_tokens: int


def sizes_of(tokens: int) -> list[Size]:
    """A hundredth, a tenth, all of them, and all of them as one conversation."""
    told = [Size(f"{n:,} tokens", n, SHORT_TOKENS) for n in (tokens // 100, tokens // 10, tokens)]
    return [*told, Size(f"{tokens:,} tokens in one", tokens, tokens)]


def write_run(path: Path, size: Size, seed: int = 0) -> None:
    """A recording with explanations, scores and findings."""
    rng = random.Random(seed)
    manifest = {"model": "bench", "layer": LAYER, "nla_id": "bench"}
    with RecordingWriter(path, manifest=manifest, d_model=D_MODEL, content="full") as writer:
        for number in range(max(1, size.tokens // size.conversation_tokens)):
            _write_conversation(writer, rng, number, size.conversation_tokens)


def _write_conversation(
    writer: RecordingWriter, rng: random.Random, number: int, count: int
) -> None:
    request = Request(
        f"r{number:06d}", f"r{number:06d}", "bench", f"s{number // 8}", f"tenant-{number % 5}",
        started_unix_ns=(1_795_000_000 + 60 * number) * 10**9,
    )  # fmt: skip
    texts = [" " + rng.choice(WORDS) for _ in range(count)]
    border = count // 3
    found = []
    for position in range(0, count, EVERY):
        hit = rng.random() < 1 / 40
        writer.write_activation(*_row(rng, request, position, texts, border, hit))
        if hit:
            found.append(_finding(rng, request.request_id, position))
    rows = len(range(0, count, EVERY))
    writer.write_findings(found)
    writer.write_request(
        RequestRecord(
            request, "".join(texts[:border]), border, count - border,
            Coverage(count, count, rows, rows, rows, 0, {}),
            VerdictState.ALERT if found else VerdictState.CLEAN,
            prompt_token_texts=tuple(texts[:border]), output_token_texts=tuple(texts[border:]),
        )
    )  # fmt: skip


def _row(
    rng: random.Random,
    request: Request,
    position: int,
    texts: Sequence[str],
    border: int,
    hit: bool,
) -> tuple[Activation, Decoding]:
    theme = "keylogger" if hit else "mill"
    said = " ".join(rng.choices(WORDS, k=14))
    text = f'at "{texts[position]}"; expects " the| a| of"; request: asks about a {theme}; {said}'
    activation = Activation(
        request, position, 1, texts[position],
        Phase.PROMPT if position < border else Phase.COMPLETION, LAYER, torch.ones(D_MODEL),
        SampleReason.SCORE, {f"direction_{n}": round(rng.gauss(0, 2), 3) for n in range(3)},
        request.started_unix_ns + position * 50_000_000,
    )  # fmt: skip
    fve = round(rng.uniform(-0.2, 0.95), 3)
    return activation, Decoding(text, True, 0.8, fve, 1, 256, "bench", 42, 0.1)


def _finding(rng: random.Random, request_id: str, position: int) -> Finding:
    name = rng.choice(("spyware", "fraud", "weapons"))
    severity = rng.choice((Severity.MEDIUM, Severity.HIGH))
    span = Span("tool", "output", 0, 9, "keylogger")
    return Finding(
        request_id,
        position,
        name,
        name,
        "1",
        f"About {name}",
        severity,
        FindingState.MATCH,
        (span,),
    )


@contextmanager
def chromium() -> Iterator[Any | None]:
    """A browser, or None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        yield None
        return
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def measured(browser: Any, page_file: Path) -> dict[str, float]:
    """Seconds of everything a reader waits for, in a fresh window."""
    window = browser.new_page(viewport={"width": 1280, "height": 900})
    try:
        window.add_init_script(PAINTED)
        window.goto(page_file.as_uri())
        found = {"open": window.evaluate("window.painted")}
        for name, script in (("unfold", UNFOLD), ("search", SEARCH), ("colour", COLOUR)):
            found[name] = window.evaluate(script)
    finally:
        window.close()
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def claims_of(
    sizes: Sequence[Size],
    times: Mapping[tuple[str, str], Sequence[float]],
    file_bytes: Mapping[str, int],
    written_s: Mapping[str, float],
) -> list[Claim]:
    """Bounds stand on the largest pages; what no browser measured stays unknown."""
    claims = []
    largest = max(size.tokens for size in sizes)
    for size in sizes:
        bounded = size.tokens == largest
        for name in ("open", "search", "colour", "unfold"):
            limit = MAX_OPEN_S if name == "open" else MAX_ANSWER_S
            values = times.get((size.name, name), ())
            if name == "unfold" and size.conversation_tokens == SHORT_TOKENS:
                continue  # nothing is folded there
            told = None if not bounded or name == "unfold" else limit
            label = f"{name}, {size.name}"
            claims.append(
                median(label, np.array(values), "s", told)
                if values
                else Claim(label, np.nan, unit="s", bound=told)
            )
        share = file_bytes[size.name] / size.tokens
        limit = MAX_BYTES_A_TOKEN if bounded else None
        claims.append(Claim(f"file, {size.name}", share, unit="bytes a token", bound=limit))
        claims.append(Claim(f"written in, {size.name}", written_s[size.name], unit="s"))
    return claims


def table_of(claims: Sequence[Claim]) -> Table:
    """One row a claim."""
    table = Table(title="the HTML report in a browser")
    table.add_column("measure")
    for name in ("median", "95 % interval", "must reach", "holds"):
        table.add_column(name, justify="right")
    for claim in claims:
        known = not np.isnan(claim.low)
        between = f"{claim.low:.3g} to {claim.high:.3g}" if known else ""
        value = "unknown" if np.isnan(claim.value) else f"{claim.value:.3g} {claim.unit}"
        bound = str(claim.bound) if claim.bound else ""
        table.add_row(claim.name, value, between, bound, verdict(claim))
    return table


def main(
    tokens: Annotated[int, typer.Option(min=1000, help="Of the largest page.")] = TOKENS,
    quick: QuickOption = False,
    json_file: JsonOption = None,
) -> None:
    """Open reports in a browser; exit code 1 where one is too slow or too large."""
    with clear_errors(json_file), tempfile.TemporaryDirectory() as directory:
        machine = describe(seconds=0.2 if quick else 1.0)
        sizes = sizes_of(QUICK_TOKENS if quick else tokens)
        pages = {size.name: Path(directory) / f"{n}.html" for n, size in enumerate(sizes)}
        written_s = {}
        for number, size in enumerate(sizes):
            write_run(Path(directory) / f"run-{number}", size)
            began_s = time.perf_counter()
            write_report(Path(directory) / f"run-{number}", pages[size.name])
            written_s[size.name] = time.perf_counter() - began_s
        times = rounds(sizes, pages, QUICK_ROUNDS if quick else ROUNDS)
        file_bytes = {name: page.stat().st_size for name, page in pages.items()}
        claims = claims_of(sizes, times, file_bytes, written_s)
        notes = NOTES if times else (*NOTES, "no Chromium or no playwright: nothing was opened")
        code = finish(Report(machine, claims), [table_of(claims)], notes, json_file)
    raise typer.Exit(code)


def rounds(
    sizes: Sequence[Size], pages: Mapping[str, Path], count: int
) -> dict[tuple[str, str], list[float]]:
    """Seconds by size and measure, one a round; empty without a browser."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    with chromium() as browser, progress() as report:
        for number in range(count if browser else 0):
            for size in sizes if number % 2 else sizes[::-1]:
                for name, seconds in measured(browser, pages[size.name]).items():
                    times[size.name, name].append(seconds)
            report("rounds", number + 1, count)
    return dict(times)


if __name__ == "__main__":
    run(main)
