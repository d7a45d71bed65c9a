"""Evaluate a pair on held-out documents, with every control beside the figure it qualifies.

Definitions (NLA paper, 2026, and its public controls). u = h/|h|, v = AR(text)/|AR(text)|:
FVE = 1 - mean|u - v|^2 / mean|u - m|^2 with the sidecar's m, which is never re-normalised.
Intervals are 95 %, by a bootstrap that draws whole documents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from nae_monitor.decode import (
    AvCheckpoint,
    FidelityReference,
    Reconstructor,
    Verbalizer,
    load_reconstructor,
    open_pair,
)
from nae_monitor.decode.engines.torch_engine import TorchEngine
from nae_monitor.decode.prompts import PromptBuilder
from nae_monitor.decode.weights import ResolveBase, load_causal_lm
from nae_monitor.errors import CheckpointError, Mark, Problem
from nae_monitor.records import Decoding
from nae_monitor.train import av
from nae_monitor.train.dataset import Examples

RETRIEVAL_SIZE = 256
BOOTSTRAP_ROUNDS = 1000
_LAST_WORDS = re.compile(r'"(.*?)"; expects "', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the table. ``low`` and ``high`` are NaN where no interval is meant."""

    name: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    unit: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class Pair:
    """A pair opened for evaluation: the verbalizer's model is needed for its losses."""

    model: Any
    av: AvCheckpoint
    verbalizer: Verbalizer
    reconstructor: Reconstructor
    reference: FidelityReference
    token_means: dict[int, torch.Tensor]  # last token -> mean unit vector [d]


@dataclass(frozen=True, eq=False, slots=True)
class Outcome:
    """Everything measured, and the decodes it was measured on."""

    measures: tuple[Measure, ...]
    examples: Examples
    decodings: tuple[Decoding, ...]


Progress = Callable[[str, int, int], None]


def open_for_evaluation(av_dir: Path, ar_dir: Path, resolve_base: ResolveBase) -> Pair:
    """Load both halves in float32 on the CPU.

    Raises:
        CheckpointError: a broken contract, or no fidelity statistics to measure against.
    """
    av_checkpoint, ar_checkpoint = open_pair(av_dir, ar_dir, resolve_base)
    if ar_checkpoint.reference is None:
        place = Mark(str(ar_dir / "fidelity.safetensors"))
        problem = Problem(place, "is missing", "without mean and variance FVE is unknown")
        raise CheckpointError([problem])
    device = torch.device("cpu")
    model = load_causal_lm(av_checkpoint.source, dtype=torch.float32, device=device)
    engine = TorchEngine(model, av_checkpoint.tokenizer, batch_size=32)
    builder = PromptBuilder(av_checkpoint, engine.prompt_rows(av_checkpoint.prompt_ids))
    means = ar_dir / "token_means.safetensors"
    token_means: dict[int, torch.Tensor] = {}
    if means.is_file():
        tensors = load_file(means)
        token_means = dict(
            zip(tensors["token_ids"].tolist(), tensors["means"].float(), strict=True)
        )
    return Pair(
        model,
        av_checkpoint,
        Verbalizer(av_checkpoint, builder, engine),
        load_reconstructor(ar_checkpoint, batch_size=32, dtype=torch.float32, device=device),
        ar_checkpoint.reference,
        token_means,
    )


def evaluate(
    pair: Pair, examples: Examples, *, seed: int = 0, progress: Progress = lambda *_: None
) -> Outcome:
    """Measure the pair on ``examples`` (content positions of held-out documents)."""
    decodings: list[Decoding] = []
    for start in range(0, len(examples), 32):
        decodings += pair.verbalizer.decode(examples.vectors[start : start + 32])
        progress("decode", len(decodings), len(examples))
    texts = [d.text for d in decodings]
    unit = normalize(examples.vectors, dim=-1)
    rebuilt = _directions(pair, texts)
    shuffle = np.random.default_rng(seed).permutation(len(texts))
    progress("reconstruct", 0, 1)
    gold = _directions(pair, [t.text for t in examples.targets])
    empty = _directions(pair, [""]).expand_as(unit)
    last_token = torch.stack(
        [pair.token_means.get(int(t), pair.reference.mean) for t in examples.token_ids]
    )
    distance = (unit - pair.reference.mean).square().sum(-1).numpy()
    clusters = _clusters(examples.digests)

    def share(name: str, guess: torch.Tensor) -> Measure:
        error = (unit - guess).square().sum(-1).numpy()
        return _ratio(name, error, distance, clusters, seed)

    losses = _losses(pair, examples, shuffle)
    measures = (
        share("round-trip FVE", rebuilt),
        share("AR on gold targets, FVE", gold),
        share("AR on empty text, FVE", empty),
        share("AR on another row's text, FVE", rebuilt[torch.from_numpy(shuffle)]),
        share("same-last-token mean, FVE", last_token),
        _mean("round-trip cosine", (unit * rebuilt).sum(-1).numpy(), clusters, seed),
        _mean("AV loss, real vector", losses["real"], clusters, seed, "nats"),
        _mean("AV loss, another row's vector", losses["shuffled"], clusters, seed, "nats"),
        _mean("AV loss, zeroed vector", losses["zeroed"], clusters, seed, "nats"),
        _mean("gap: another's - real", losses["shuffled"] - losses["real"], clusters, seed, "nats"),
        *_retrieval(unit, rebuilt, clusters, seed),
        _mean("last token named", _last_named(examples, texts), clusters, seed),
        _mean("theme exactly right", _theme_right(examples, texts), clusters, seed),
        Measure("unique texts per 100", 100 * len(set(texts)) / len(texts)),
        _mean(
            "closing tag written", np.array([float(d.closed) for d in decodings]), clusters, seed
        ),
        Measure("tokens per explanation", float(np.mean([d.tokens for d in decodings]))),
    )
    return Outcome(measures, examples, tuple(decodings))


def _directions(pair: Pair, texts: Sequence[str]) -> torch.Tensor:
    return normalize(pair.reconstructor.reconstruct(texts), dim=-1)


@torch.no_grad()
def _losses(pair: Pair, examples: Examples, shuffle: np.ndarray) -> dict[str, np.ndarray]:
    """Mean cross-entropy per explanation token of each row [n], opening tag left out."""
    prompt = av.AvPrompt(pair.av.prompt_ids, pair.av.marker_index, pair.av.contract.injection_scale)
    encoded = av.encode_targets(pair.av.tokenizer, examples.targets, span_weight=1.0).token_ids
    vectors = {
        "real": examples.vectors,
        "shuffled": examples.vectors[torch.from_numpy(shuffle)],
        "zeroed": torch.zeros_like(examples.vectors),
    }
    result: dict[str, np.ndarray] = {}
    for name, rows in vectors.items():
        parts: list[np.ndarray] = []
        for start in range(0, len(encoded), 32):
            stop = start + 32
            losses, real = av.token_losses(
                pair.model, prompt, rows[start:stop], encoded[start:stop]
            )
            kept = real.clone()
            kept[:, : av.OPEN_TOKENS] = False
            parts.append(((losses * kept).sum(1) / kept.sum(1)).numpy())
        result[name] = np.concatenate(parts)
    return result


def _retrieval(
    unit: torch.Tensor, rebuilt: torch.Tensor, clusters: list[np.ndarray], seed: int
) -> list[Measure]:
    size = min(RETRIEVAL_SIZE, len(unit))
    scores = rebuilt[:size] @ unit[:size].T
    ranks = 1 + (scores > scores.diagonal()[:, None]).sum(1).numpy()
    inside = [c[c < size] for c in clusters if (c < size).any()]
    top = (ranks == 1).astype(float)
    return [
        _mean(f"retrieval among {size}, top 1", top, inside, seed),
        Measure(f"retrieval among {size}, median rank", float(np.median(ranks))),
    ]


def _last_named(examples: Examples, texts: Sequence[str]) -> np.ndarray:
    """1 where the quoted last words end with the word piece that stands at the position."""
    named = []
    for target, text in zip(examples.targets, texts, strict=True):
        found = _LAST_WORDS.search(text)
        piece = target.last_token
        named.append(float(bool(found and piece and found.group(1).rstrip().endswith(piece))))
    return np.array(named)


def _theme_right(examples: Examples, texts: Sequence[str]) -> np.ndarray:
    pairs = zip(examples.targets, texts, strict=True)
    return np.array([float(text.split(";")[0] == target.theme) for target, text in pairs])


def _clusters(digests: Sequence[str]) -> list[np.ndarray]:
    rows: dict[str, list[int]] = {}
    for i, digest in enumerate(digests):
        rows.setdefault(digest, []).append(i)
    return [np.array(r) for r in rows.values()]


def _draws(clusters: list[np.ndarray], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        np.concatenate([clusters[i] for i in rng.integers(len(clusters), size=len(clusters))])
        for _ in range(BOOTSTRAP_ROUNDS)
    ]


def _mean(
    name: str, values: np.ndarray, clusters: list[np.ndarray], seed: int, unit: str = ""
) -> Measure:
    means = [values[rows].mean() for rows in _draws(clusters, seed)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Measure(name, float(values.mean()), float(low), float(high), unit)


def _ratio(
    name: str, error: np.ndarray, distance: np.ndarray, clusters: list[np.ndarray], seed: int
) -> Measure:
    values = [1 - error[rows].mean() / distance[rows].mean() for rows in _draws(clusters, seed)]
    low, high = np.quantile(values, [0.025, 0.975])
    return Measure(name, float(1 - error.mean() / distance.mean()), float(low), float(high))
