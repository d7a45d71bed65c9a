"""Texts of held-out positions: one greedy, several sampled, and those of the tokens beside.

One position a document, so that documents are the unit of every interval without further ado. The
texts are kept as JSON Lines; a run that was stopped goes on behind its last whole line.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nae_monitor.decode import Nla, measure
from nae_monitor.records import Decoding
from nae_monitor.train.collect import measure as run_target
from nae_monitor.train.conversations import (
    CollectOptions,
    Conversation,
    is_content,
    opening_tokens,
    reply,
)
from nae_monitor.train.corpus import TrainingDocument
from nae_monitor.train.targets import CLEAR_TOKENS, Target, make_target, special_words
from nae_monitor.train.themes import theme_of

SAMPLES = 5  # further texts of the same vector, at the temperature that a hit's resamples have
REACH = 1  # tokens to either side whose greedy texts are read
CHUNK = 6  # documents whose texts are written at once

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One held-out position with its texts and with what a claim is checked against."""

    digest: str
    split: str
    kind: str  # the label of the source's kind; empty where no reader could tell it yet
    token: str  # at the position
    next_token: str  # that follows it in the document; empty at its end
    expected: str  # the target's three likeliest next tokens
    before: str  # what stands in the document up to the position
    text: str  # greedy
    samples: tuple[str, ...]
    neighbours: tuple[str, ...]
    fve: float
    rank_share: float  # of h among the pair's reference vectors, 0 best
    gain_empty: float  # FVE over that of AR("")
    gain_token: float  # FVE over that of AR on the last token's name alone
    sample_s: float  # wall time of one further text


def draw(
    nla: Nla,
    target: Any,
    tokenizer: Any,
    documents: Sequence[tuple[TrainingDocument, str]],
    options: CollectOptions,
    path: Path,
    *,
    seed: int,
    progress: Progress,
    until_s: float = math.inf,
) -> list[Drawn]:
    """Draw what ``path`` does not hold yet; all of it, in the documents' order.

    Nothing more is begun at ``until_s``, monotonic seconds; then the last documents are missing.
    """
    done = read_drawn(path)
    left = [(d, s) for d, s in documents if d.digest not in done]
    for start in range(0, len(left), CHUNK):
        progress("texts", len(documents) - len(left) + start, len(documents))
        if time.monotonic() >= until_s:
            break
        part = left[start : start + CHUNK]
        found = _positions(nla, target, tokenizer, part, options, seed)
        digests = {one.digest for one in found}
        lines = [asdict(one) for one in found]
        lines += [{"digest": d.digest} for d, _ in part if d.digest not in digests]
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        done = read_drawn(path)
    every = (done.get(d.digest) for d, _ in documents)
    return [one for one in every if one is not None]


def read_drawn(path: Path) -> dict[str, Drawn | None]:
    """By digest; None for a document that has no fit position. A torn last line is cut off."""
    if not path.exists():
        return {}
    found: dict[str, Drawn | None] = {}
    kept = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        value = json.loads(line)
        if len(value) > 1:
            value |= {name: tuple(value[name]) for name in ("samples", "neighbours")}
            found[value["digest"]] = Drawn(**value)
        else:
            found[value["digest"]] = None
        kept += len(line)
    with path.open("r+b") as file:
        file.truncate(kept)
    return found


def _positions(
    nla: Nla,
    target: Any,
    tokenizer: Any,
    documents: Sequence[tuple[TrainingDocument, str]],
    options: CollectOptions,
    seed: int,
) -> list[Drawn]:
    special = frozenset(tokenizer.all_special_ids)
    opening = opening_tokens(tokenizer)
    anchored = [
        (talk, anchor)
        for talk in reply(target, tokenizer, documents, options)
        if (anchor := _anchor(talk, special, opening, options.min_position, seed)) is not None
    ]
    if not anchored:
        return []
    places = [list(range(p - REACH, p + REACH + 1)) for _, p in anchored]
    measured = run_target(target, [talk for talk, _ in anchored], places, options)
    greedy = nla.verbalizer.decode(torch.cat([m.vectors for m in measured]))
    vectors = torch.stack([m.vectors[REACH] for m in measured])
    began_s = time.perf_counter()
    again = nla.verbalizer.decode(
        vectors.repeat_interleave(SAMPLES, dim=0),
        temperature=1.0,
        seeds=list(range(1, SAMPLES + 1)) * len(vectors),
    )
    sample_s = (time.perf_counter() - began_s) / len(again)
    width = 2 * REACH + 1
    words = special_words(tokenizer)
    return [
        _drawn(
            nla,
            tokenizer,
            talk,
            anchor,
            _target(tokenizer, words, talk, anchor, opening, m.top_ids[REACH]),
            vectors[i],
            [d.text for d in greedy[i * width : (i + 1) * width]],
            again[i * SAMPLES : (i + 1) * SAMPLES],
            sample_s,
        )
        for i, ((talk, anchor), m) in enumerate(zip(anchored, measured, strict=True))
    ]


def _anchor(
    talk: Conversation, special: frozenset[int], opening: int, min_position: int, seed: int
) -> int | None:
    ids = talk.token_ids
    first = max(min_position, opening + CLEAR_TOKENS) + REACH
    fit = [p for p in range(first, len(ids) - REACH) if is_content(ids, p, special)]
    rng = np.random.default_rng([seed, int(talk.document.digest[:8], 16)])
    return int(fit[rng.integers(len(fit))]) if fit else None


def _target(
    tokenizer: Any,
    words: Any,
    talk: Conversation,
    place: int,
    opening: int,
    top_ids: Sequence[int],
) -> Target:
    ids = talk.token_ids
    return make_target(
        tokenizer,
        words,
        theme=theme_of(talk.document.digest, talk.document.kind),
        user_tokens=place - opening + 1,
        last_ids=ids[max(0, place - 15) : place + 1],
        top_ids=top_ids,
        reply_ids=ids[talk.prompt_tokens : place + 1],
    )


def _drawn(
    nla: Nla,
    tokenizer: Any,
    talk: Conversation,
    place: int,
    known: Target,
    vector: torch.Tensor,
    texts: Sequence[str],
    again: Sequence[Decoding],
    sample_s: float,
) -> Drawn:
    ids = talk.token_ids
    said = texts[REACH]
    rebuilt = nla.reconstructor.reconstruct([said, "", f'at "{known.last_token}"'])
    whole, empty, token = (measure(vector, row, nla.reference) for row in rebuilt)
    after = tokenizer.decode(ids[place + 1 : place + 2])
    return Drawn(
        digest=talk.document.digest,
        split=talk.split,
        kind=known.theme.partition(":")[0] if known.kind else "",
        token=known.last_token,
        next_token=after.replace("\n", "\\n").replace('"', "'"),
        expected=known.following,
        before=str(tokenizer.decode(ids[: place + 1])),
        text=said,
        samples=tuple(d.text for d in again),
        neighbours=(*texts[:REACH], *texts[REACH + 1 :]),
        fve=_known(whole.fve),
        rank_share=_known(whole.rank) / (whole.bank_size + 1),
        gain_empty=_known(whole.fve) - _known(empty.fve),
        gain_token=_known(whole.fve) - _known(token.fve),
        sample_s=sample_s,
    )


def _known(figure: float | None) -> float:
    return float("nan") if figure is None else float(figure)
