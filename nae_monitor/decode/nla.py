"""The pair as one decoder: vectors in, explanations with their fidelity out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from nae_monitor.decode.checkpoint import open_pair
from nae_monitor.decode.contract import AvCheckpoint, FidelityReference
from nae_monitor.decode.engines.fused import foreseen
from nae_monitor.decode.engines.quantised import lacking
from nae_monitor.decode.fidelity import measure
from nae_monitor.decode.reconstructor import Reconstructor, load_reconstructor
from nae_monitor.decode.support.calibration import SupportCalibration, shipped_support
from nae_monitor.decode.verbalizer import Verbalizer, load_verbalizer, vector_seeds
from nae_monitor.decode.weights import ResolveBase
from nae_monitor.errors import UnsupportedError
from nae_monitor.records import Decoding
from nae_monitor.settings import NlaSettings

RESAMPLE_TEMPERATURE = 1.0  # where seeds are given and the settings say greedy


class Decoder(Protocol):
    """What the pipeline needs of a decoder.

    ``decode`` blocks for as long as the texts take to write (seconds on a CPU), may be called
    from any one thread at a time, returns one record a row in the rows' order, and depends on
    each row and its seed alone, never on the batch. It does not retry and swallows nothing:

    - VectorError: a row is unfit (see ``screen_vectors``); nothing was decoded;
    - EngineError: a remote engine did not answer within its deadline; nothing was decoded;
    - AbandonedError: another thread gave the call up by ``abandon``; nothing was decoded.
    """

    @property
    def nla_id(self) -> str:
        """Name of the pair, as records carry it."""
        ...

    @property
    def d_model(self) -> int:
        """Width of the activations it reads."""
        ...

    @property
    def layer(self) -> int:
        """It reads the residual stream ``hidden_states[layer]``."""
        ...

    def decode(
        self, vectors: torch.Tensor, *, seeds: Sequence[int] | None = None
    ) -> list[Decoding]:
        """Decode ``vectors`` [n, d]; ``seeds``, one a row, asks for samples."""
        ...

    def abandon(self) -> bool:
        """Let a call that is under way raise AbandonedError soon, at the end of a process.

        A thread in the middle of a decode takes an interpreter that ends down with SIGABRT.
        Later calls are not touched.

        Returns:
            False where it cannot be given up.
        """
        ...


class Nla:
    """A verbalizer and a reconstructor that belong together. Implements :class:`Decoder`."""

    def __init__(
        self,
        verbalizer: Verbalizer,
        reconstructor: Reconstructor,
        reference: FidelityReference | None,
        settings: NlaSettings,
        support: SupportCalibration | None = None,
    ) -> None:
        self.support = support  # None: P(unsupported) is unknown
        self.verbalizer = verbalizer
        self.reconstructor = reconstructor
        self.reference = reference
        self._settings = settings

    @property
    def nla_id(self) -> str:
        """Name of the pair: the verbalizer's."""
        return self.verbalizer.contract.nla_id

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.reconstructor.contract.d_model

    @property
    def layer(self) -> int:
        """Index into ``hidden_states``, one above the sidecars' layer index."""
        return self.reconstructor.contract.layer

    def decode(
        self, vectors: torch.Tensor, *, seeds: Sequence[int] | None = None
    ) -> list[Decoding]:
        """Decode and measure each row; see :class:`Decoder` for the contract.

        Args:
            vectors: [n, d], any floating dtype and device.
            seeds: one a row: sample at the settings' temperature, or at 1.0 where that is 0.
                None: greedy, or sampled with seeds made of the settings' seed and the vector
                where the settings' temperature is above 0.
        """
        temperature = self._settings.temperature
        if seeds is not None:
            temperature = temperature or RESAMPLE_TEMPERATURE
        elif temperature > 0 and vectors.dim() == 2:
            seeds = vector_seeds(vectors, self._settings.seed)
        decodings = self.verbalizer.decode(
            vectors,
            max_new_tokens=self._settings.max_new_tokens,
            temperature=temperature,
            seeds=seeds,
        )
        return self.measured(vectors, decodings) if decodings else []

    def abandon(self) -> bool:
        """See :class:`Decoder`; what is being measured already is still measured."""
        return self.verbalizer.abandon()

    def cosines(self, vector: torch.Tensor, texts: Sequence[str]) -> list[float | None]:
        """Cosine(AR(text), h) of each text, h [d]; None where a text has no reconstruction."""
        rebuilt = self.reconstructor.reconstruct(texts)
        figures = (measure(vector, row, None).cosine for row in rebuilt)
        return [None if c is None or not math.isfinite(c) else c for c in figures]

    def measured(self, vectors: torch.Tensor, decodings: Sequence[Decoding]) -> list[Decoding]:
        """The decodings with the fidelity that their texts have for ``vectors`` [n, d]."""
        started_s = time.perf_counter()
        rebuilt = self.reconstructor.reconstruct([d.text for d in decodings])
        figures = [measure(h, r, self.reference) for h, r in zip(vectors, rebuilt, strict=True)]
        share_s = (time.perf_counter() - started_s) / len(decodings)
        return [
            replace(
                decoding,
                cosine=f.cosine,
                fve=f.fve,
                rank=f.rank,
                bank_size=f.bank_size,
                seconds=decoding.seconds + share_s,
            )
            for decoding, f in zip(decodings, figures, strict=True)
        ]


def load_nla(
    av_dir: Path,
    ar_dir: Path,
    *,
    settings: NlaSettings,
    resolve_base: ResolveBase,
    target_d_model: int | None = None,
    target_layer: int | None = None,
) -> Nla:
    """Check and load a pair; nothing is fetched.

    On the CPU everything runs in float32, but for a verbalizer whose weights the settings want
    smaller; on CUDA in the checkpoint's own precision.

    Args:
        av_dir: verbalizer directory, official or adapter form.
        ar_dir: reconstructor directory.
        settings: engine, batch size, sampling, device.
        resolve_base: base model name of an adapter to its local directory.
        target_d_model: width of the monitored model, checked where given.
        target_layer: index into ``hidden_states`` that is captured, checked where given.

    Raises:
        CheckpointError: every broken rule of both directories and of their agreement.
        UnsupportedError: CUDA is asked for and missing; see also :func:`verbalizer_weights`.
    """
    device = _device(settings.device)
    av, ar = open_pair(
        av_dir,
        ar_dir,
        resolve_base,
        target_d_model=target_d_model,
        target_layer=target_layer,
    )
    verbalizer_weights(av, settings)
    on_cpu = device.type == "cpu"
    av_dtype, ar_dtype = (
        torch.float32 if on_cpu else (c.source.config.dtype or torch.float32) for c in (av, ar)
    )
    verbalizer = load_verbalizer(av, settings, dtype=av_dtype, device=device)
    ar_batch_size = settings.ar_batch_size or (1 if on_cpu else settings.batch_size)
    reconstructor = load_reconstructor(ar, batch_size=ar_batch_size, dtype=ar_dtype, device=device)
    support = shipped_support(ar_dir, av.contract.nla_id)
    return Nla(verbalizer, reconstructor, ar.reference, settings, support)


def general_path(av: AvCheckpoint, settings: NlaSettings) -> str | None:
    """Why decoding will take the torch engine's general, slower path; None where it will not.

    Nothing is loaded.

    Raises:
        UnsupportedError: CUDA is asked for and missing.
    """
    if settings.engine != "torch":
        return None
    return foreseen(av.source.config, _device(settings.device))


def verbalizer_weights(av: AvCheckpoint, settings: NlaSettings) -> str | None:
    """Precision of the weights that will write; None where a server has them. Nothing is loaded.

    Raises:
        UnsupportedError: CUDA is asked for and missing, or ``nla.cpu_weights`` cannot be had.
    """
    if settings.engine != "torch":
        return None
    device, wanted = _device(settings.device), settings.cpu_weights
    if device.type == "cpu":
        fault = foreseen(av.source.config, device) or lacking() if wanted == "int8" else None
    else:
        fault = None if wanted == "float32" else f"it would run on {device.type}"
    if fault is not None:
        raise UnsupportedError(f"nla.cpu_weights cannot be {wanted} for this verbalizer: {fault}")
    if device.type == "cpu":
        return wanted
    return str(av.source.config.dtype or torch.float32).removeprefix("torch.")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("nla.device is cuda, but torch sees no CUDA device")
    return torch.device(name)
