"""Explanations of chosen rows, written once and kept on disk by conversation and position."""

from __future__ import annotations

import hashlib
import json
import queue
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nae_monitor.decode import FidelityReference, Reconstructor, Verbalizer, load_reconstructor
from nae_monitor.decode.checkpoint import open_pair
from nae_monitor.decode.contract import AvCheckpoint
from nae_monitor.decode.engines.torch_engine import TorchEngine
from nae_monitor.decode.fidelity import measure
from nae_monitor.decode.prompts import PromptBuilder
from nae_monitor.decode.weights import load_causal_lm
from nae_monitor.models import resolve_target
from nae_monitor.train.files import make_directory

Key = tuple[str, int]  # conversation, position
BATCH, CHUNK, RECONSTRUCT_BATCH = 256, 256, 32


@dataclass(frozen=True, slots=True)
class Explained:
    """One decode; figures are None where the pair cannot tell."""

    text: str
    closed: bool
    tokens: int
    cosine: float | None
    fve: float | None
    seconds: float  # of one worker


class Journal:
    """Results by key in an append-only file of JSON lines; what a kill tore off is dropped."""

    def __init__(self, path: Path) -> None:
        make_directory(path.parent)
        self._path = path
        self.found: dict[Key, Any] = {}
        good = 0
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    try:
                        digest, position, value = json.loads(line)
                    except ValueError:
                        break
                    if not line.endswith(b"\n"):
                        break
                    self.found[digest, position] = value
                    good += len(line)
            with path.open("r+b") as file:
                file.truncate(good)

    def add(self, items: Mapping[Key, Any]) -> None:
        """Keep and write; on disk when this returns, as far as the system tells."""
        with self._path.open("a", encoding="utf-8") as file:
            for (digest, position), value in items.items():
                file.write(json.dumps([digest, position, value]) + "\n")
        self.found |= items


class Explainer:
    """A pair that several threads decode with, each on its own caches and one core.

    Args:
        checkpoint: of the verbalizer.
        model: its language model, or another one that is to write in its place.
        reconstructor: measures the texts.
        reference: what fidelity is measured against.
        workers: threads.
    """

    def __init__(
        self,
        checkpoint: AvCheckpoint,
        model: Any,
        reconstructor: Reconstructor,
        reference: FidelityReference | None,
        workers: int,
    ) -> None:
        self.workers = workers
        self._reconstructor, self._reference = reconstructor, reference
        self._free: queue.SimpleQueue[Verbalizer] = queue.SimpleQueue()
        for _ in range(workers):
            engine = TorchEngine(model, checkpoint.tokenizer, batch_size=BATCH, is_frozen=True)
            builder = PromptBuilder(checkpoint, engine.prompt_rows(checkpoint.prompt_ids))
            self._free.put(Verbalizer(checkpoint, builder, engine))

    def explain(self, vectors: torch.Tensor) -> list[Explained]:
        """Decode [n, d] and measure each text."""
        started_s = time.perf_counter()
        verbalizer = self._free.get()
        try:
            decodings = verbalizer.decode(vectors)
        finally:
            self._free.put(verbalizer)
        rebuilt = self._reconstructor.reconstruct([d.text for d in decodings])
        figures = [measure(h, r, self._reference) for h, r in zip(vectors, rebuilt, strict=True)]
        share_s = (time.perf_counter() - started_s) / len(decodings)
        return [
            Explained(d.text, d.closed, d.tokens, f.cosine, f.fve, share_s)
            for d, f in zip(decodings, figures, strict=True)
        ]


def open_explainers(
    av_dir: Path, ar_dir: Path, workers: int, dtype: torch.dtype
) -> tuple[Explainer, Callable[[], Explainer]]:
    """The pair, and a way to its untrained twin: the base model in the verbalizer's place."""
    device = torch.device("cpu")
    av, ar = open_pair(av_dir, ar_dir, resolve_target)
    reconstructor = load_reconstructor(ar, batch_size=RECONSTRUCT_BATCH, dtype=dtype, device=device)

    def twin() -> Explainer:
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(
            resolve_target(str(av.contract.base_model)), dtype=dtype
        ).eval()
        return Explainer(av, base, reconstructor, ar.reference, workers)

    model = load_causal_lm(av.source, dtype=dtype, device=device)
    return Explainer(av, model, reconstructor, ar.reference, workers), twin


def identity(*parts: str | Path) -> str:
    """A short name made of texts and of all files of directories."""
    key = hashlib.sha256()
    for part in parts:
        files = sorted(part.iterdir()) if isinstance(part, Path) else []
        for file in files:
            key.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        key.update(str("" if files else part).encode() + b"\0")
    return key.hexdigest()[:16]


def decode(
    explainer: Explainer,
    wanted: Sequence[Key],
    vector_of: Callable[[Key], torch.Tensor],
    journal: Journal,
    *,
    until_s: float,
    report: Callable[[int, int], None] = lambda *_: None,
) -> bool:
    """Decode what the journal lacks, in order; False where the time (monotonic) ran out.

    In half precision a text may depend on what is decoded beside it. So ``wanted`` is cut in the
    same pieces whatever is known of it already, and a piece that a kill left in part is decoded
    whole: a run that goes on writes what an uninterrupted one does.
    """
    pieces = [wanted[i : i + CHUNK] for i in range(0, len(wanted), CHUNK)]
    missing = [piece for piece in pieces if any(key not in journal.found for key in piece)]
    total, done = sum(map(len, missing)), 0
    pending: dict[Future[list[Explained]], Sequence[Key]] = {}
    with ThreadPoolExecutor(explainer.workers) as pool:
        for piece in missing:
            if time.monotonic() >= until_s:
                break
            vectors = torch.stack([vector_of(key) for key in piece])
            pending[pool.submit(explainer.explain, vectors)] = piece
            if len(pending) >= explainer.workers:
                done += _settle(pending, journal, wait_all=False)
                report(done, total)
        done += _settle(pending, journal, wait_all=True)
        report(done, total)
    return done == total


def _settle(
    pending: dict[Future[list[Explained]], Sequence[Key]], journal: Journal, *, wait_all: bool
) -> int:
    finished: Iterable[Future[list[Explained]]] = list(pending)
    if not wait_all and pending:
        finished = wait(pending, return_when=FIRST_COMPLETED).done
    count = 0
    for future in finished:
        keys = pending.pop(future)
        found = zip(keys, future.result(), strict=True)
        journal.add({key: asdict(one) for key, one in found if key not in journal.found})
        count += len(keys)
    return count
