"""Evaluate a pair on held-out documents, with every control beside the figure it qualifies.

Definitions (NLA paper, 2026, and its public controls). u = h/|h|, v = AR(text)/|AR(text)|:
FVE = 1 - mean|u - v|^2 / mean|u - m|^2 with the sidecar's m, which is never re-normalised.
Intervals are 95 %, by a bootstrap that draws whole documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from nae_monitor.decode.form import parts_of
from nae_monitor.decode.prompts import PromptBuilder
from nae_monitor.decode.weights import ResolveBase, load_causal_lm
from nae_monitor.errors import CheckpointError, InputDataError, Mark, Problem
from nae_monitor.models.encoder import Encoder
from nae_monitor.records import Decoding
from nae_monitor.train import av
from nae_monitor.train.batches import another_row
from nae_monitor.train.dataset import Examples
from nae_monitor.train.intervals import Clusters, Measure
from nae_monitor.train.targets import Target
from nae_monitor.train.theme_choice import kind_right, theme_in, unclear_said, with_theme

FIDELITY = "fidelity.safetensors"
RETRIEVAL_SIZE = 256


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


def open_for_evaluation(
    av_dir: Path,
    ar_dir: Path,
    resolve_base: ResolveBase,
    *,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 32,
) -> Pair:
    """Load both halves on the CPU. Texts do not depend on the batch in float32 alone.

    Raises:
        CheckpointError: a broken contract, or no fidelity statistics to measure against.
    """
    av_checkpoint, ar_checkpoint = open_pair(av_dir, ar_dir, resolve_base)
    if ar_checkpoint.reference is None:
        place = Mark(str(ar_dir / FIDELITY))
        problem = Problem(place, "is missing", "without mean and variance FVE is unknown")
        raise CheckpointError([problem])
    device = torch.device("cpu")
    model = load_causal_lm(av_checkpoint.source, dtype=dtype, device=device)
    engine = TorchEngine(model, av_checkpoint.tokenizer, batch_size=batch_size)
    builder = PromptBuilder(av_checkpoint, engine.prompt_rows(av_checkpoint.prompt_ids))
    return Pair(
        model,
        av_checkpoint,
        Verbalizer(av_checkpoint, builder, engine),
        load_reconstructor(ar_checkpoint, batch_size=batch_size, dtype=dtype, device=device),
        ar_checkpoint.reference,
        _token_means(ar_dir / FIDELITY),
    )


def _token_means(path: Path) -> dict[int, torch.Tensor]:
    """Last token -> mean unit vector [d]; empty for a pair trained elsewhere."""
    tensors = load_file(path)
    if not {"token_ids", "token_means"} <= tensors.keys():
        return {}
    means = tensors["token_means"].float()
    return dict(zip(tensors["token_ids"].tolist(), means, strict=True))


def evaluate(
    pair: Pair,
    examples: Examples,
    encoder: Encoder,
    *,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> Outcome:
    """Measure the pair on ``examples`` (content positions of held-out documents).

    A text that the reconstructor cannot take counts as a reconstruction of length zero.

    Raises:
        InputDataError: no rows.
        VectorError: rows of another width than the pair's.
    """
    if not len(examples):
        raise InputDataError("no rows of that kind to evaluate on; ask for more documents")
    decodings: list[Decoding] = []
    for start in range(0, len(examples), 32):
        decodings += pair.verbalizer.decode(examples.vectors[start : start + 32])
        progress("decode", len(decodings), len(examples))
    texts = [d.text for d in decodings]
    progress("reconstruct", 0, 1)
    clusters = Clusters.by_document(examples.digests, seed)
    other = another_row(len(examples), seed=seed)
    unit = normalize(examples.vectors, dim=-1)
    rebuilt = _directions(pair, texts)
    closed = np.array([float(d.closed) for d in decodings])
    measures = (
        *_fidelity(pair, examples, texts, rebuilt, other, clusters),
        *_loss_measures(_losses(pair, examples, other), clusters),
        *_retrieval(unit, rebuilt, clusters),
        clusters.mean("last token named", last_named(examples.targets, texts)),
        *_themes(encoder, examples, texts, seed),
        Measure("unique texts per 100", 100 * len(set(texts)) / len(texts)),
        clusters.mean("closing tag written", closed),
        Measure("tokens per explanation", float(np.mean([d.tokens for d in decodings]))),
    )
    return Outcome(measures, examples, tuple(decodings))


def _fidelity(
    pair: Pair,
    examples: Examples,
    texts: Sequence[str],
    rebuilt: torch.Tensor,
    other: np.ndarray,
    clusters: Clusters,
) -> list[Measure]:
    """FVE of the round trip and of every control it must be read against.

    What another row's theme costs says how far the reconstruction rests on themes at all.
    """
    unit = normalize(examples.vectors, dim=-1)
    themes = [with_theme(text, theme_in(texts[i])) for text, i in zip(texts, other, strict=True)]
    distance = (unit - pair.reference.mean).square().sum(-1).numpy()
    last_token = torch.stack(
        [pair.token_means.get(int(t), pair.reference.mean) for t in examples.token_ids]
    )
    guesses = {
        "round-trip FVE": rebuilt,
        "AR on gold targets, FVE": _directions(pair, [t.text for t in examples.targets]),
        "AR on empty text, FVE": _directions(pair, [""]).expand_as(unit),
        "AR on another row's text, FVE": rebuilt[torch.from_numpy(other)],
        "AR with another row's theme, FVE": _directions(pair, themes),
        "same-last-token mean, FVE": last_token,
    }
    shares = [
        clusters.fve(name, (unit - guess).square().sum(-1).numpy(), distance)
        for name, guess in guesses.items()
    ]
    cosine = (unit * rebuilt).sum(-1).numpy()
    return [*shares, clusters.mean("round-trip cosine", cosine)]


def _directions(pair: Pair, texts: Sequence[str]) -> torch.Tensor:
    """Unit reconstructions [n, d]; zero where a text cannot be reconstructed."""
    return normalize(pair.reconstructor.reconstruct(texts), dim=-1).nan_to_num(0.0)


def _loss_measures(losses: Mapping[str, np.ndarray], clusters: Clusters) -> list[Measure]:
    real, shuffled, zeroed = losses["real"], losses["shuffled"], losses["zeroed"]
    return [
        clusters.mean("AV loss, real vector", real, "nats"),
        clusters.mean("AV loss, another row's vector", shuffled, "nats"),
        clusters.mean("AV loss, zeroed vector", zeroed, "nats"),
        clusters.mean("gap: another's - real", shuffled - real, "nats"),
    ]


@torch.no_grad()
def _losses(pair: Pair, examples: Examples, other: np.ndarray) -> dict[str, np.ndarray]:
    """Mean cross-entropy per explanation token of each row [n], opening tag left out."""
    prompt = av.AvPrompt(pair.av.prompt_ids, pair.av.marker_index, pair.av.contract.injection_scale)
    targets = av.encode_targets(pair.av.tokenizer, examples.targets)
    encoded = targets.token_ids
    vectors = {
        "real": examples.vectors,
        "shuffled": examples.vectors[torch.from_numpy(other)],
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
            kept[:, : targets.open_tokens] = False
            parts.append(((losses * kept).sum(1) / kept.sum(1)).numpy())
        result[name] = np.concatenate(parts)
    return result


def _retrieval(unit: torch.Tensor, rebuilt: torch.Tensor, clusters: Clusters) -> list[Measure]:
    """How often, and where, a row's own vector ranks first; ties count against the row."""
    size = min(RETRIEVAL_SIZE, len(unit))
    scores = rebuilt[:size] @ unit[:size].T
    ranks = (scores >= scores.diagonal()[:, None]).sum(1).numpy()
    inside = Clusters(tuple(c[c < size] for c in clusters.rows if (c < size).any()), clusters.seed)
    return [
        inside.mean(f"retrieval among {size}, top 1", (ranks == 1).astype(float)),
        Measure(f"retrieval among {size}, median rank", float(np.median(ranks))),
    ]


def _themes(encoder: Encoder, examples: Examples, texts: Sequence[str], seed: int) -> list[Measure]:
    """Whether the theme leads the encoder to the right one of twenty kinds.

    Measured where a reader of the document up to the position could tell its kind. The second
    line gives what the encoder makes of the target's own themes, the most that can be reached.
    """
    told = np.array([bool(t.kind) for t in examples.targets])
    rows = examples.select(told.nonzero()[0])
    said = [text for text, is_told in zip(texts, told, strict=True) if is_told]
    names = ("theme's kind right, of 20", "the same of target themes")
    measures = [Measure(name, float("nan")) for name in names]
    if said:
        inside = Clusters.by_document(rows.digests, seed)
        both = (said, [t.text for t in rows.targets])
        measures = [
            inside.mean(name, kind_right(encoder, rows.targets, texts_of))
            for name, texts_of in zip(names, both, strict=True)
        ]
    unclear = unclear_said(texts)
    for name, kept in (("topic clear", told), ("topic unclear", ~told)):
        share = float(unclear[kept].mean()) if kept.any() else float("nan")
        measures.append(Measure(f"unclear said, {name}", share))
    return measures


def last_named(targets: Sequence[Target], texts: Sequence[str]) -> np.ndarray:
    """1 where the text names exactly the token that stands at the position [n]."""
    pairs = zip(targets, map(parts_of, texts), strict=True)
    return np.array(
        [float(bool(p and t.last_token and p.last_token == t.last_token)) for t, p in pairs]
    )
