"""The activation verbalizer (AV): vectors to text."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import torch

from nae_monitor.decode.contract import AvCheckpoint
from nae_monitor.decode.engines import Engine
from nae_monitor.decode.engines.sglang_engine import SglangEngine
from nae_monitor.decode.engines.torch_engine import TorchEngine
from nae_monitor.decode.engines.vllm_engine import VllmEngine
from nae_monitor.decode.prompts import PromptBuilder, Sampling, parse_explanation
from nae_monitor.decode.weights import embedding_rows, load_causal_lm
from nae_monitor.records import Decoding
from nae_monitor.settings import NlaSettings

_SEED_BITS = (1 << 63) - 1


class Verbalizer:
    """Writes one explanation a vector; fidelity is left unknown here.

    Greedy texts depend on the vector alone, sampled ones on the vector and its seed; neither
    depends on the batch (remote engines: as far as the server keeps to that).
    """

    def __init__(self, checkpoint: AvCheckpoint, prompts: PromptBuilder, engine: Engine) -> None:
        self.contract = checkpoint.contract
        self._prompts = prompts
        self._engine = engine

    @property
    def general_because(self) -> str | None:
        """Why the torch engine takes its general, slower path; None where it does not."""
        return self._engine.general_because if isinstance(self._engine, TorchEngine) else None

    @property
    def weights(self) -> str | None:
        """Precision of the weights, as in ``float32`` or ``int8``; None where a server has them."""
        return self._engine.weights if isinstance(self._engine, TorchEngine) else None

    def decode(
        self,
        vectors: torch.Tensor,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Decoding]:
        """Decode each row.

        Args:
            vectors: [n, d], any floating dtype and device.
            max_new_tokens: per text.
            temperature: 0 is greedy.
            seeds: one a row, used where temperature is above 0; None derives them from the
                vectors.

        Raises:
            VectorError: a row is unfit to decode; nothing is decoded then.
            EngineError: a remote engine did not answer in time.
            AbandonedError: see :meth:`abandon`.
            ValueError: ``seeds`` has another length than ``vectors``.
        """
        if vectors.dim() == 2 and vectors.shape[0] == 0:
            return []
        prompts = self._prompts.build(vectors)
        chosen = tuple(seeds) if seeds is not None else vector_seeds(vectors, 0)
        if len(chosen) != len(prompts):
            raise ValueError(f"{len(chosen)} seeds for {len(prompts)} vectors")
        sampling = Sampling(max_new_tokens, temperature, () if temperature == 0 else chosen)
        started_s = time.perf_counter()
        generations = self._engine.generate(prompts, sampling)
        share_s = (time.perf_counter() - started_s) / len(prompts)
        parsed = [(*parse_explanation(g.text), g.tokens) for g in generations]
        return [
            Decoding(text, closed, None, None, None, 0, self.contract.nla_id, tokens, share_s)
            for text, closed, tokens in parsed
        ]

    def abandon(self) -> bool:
        """See :meth:`nae_monitor.decode.engines.Engine.abandon`."""
        return self._engine.abandon()


def vector_seeds(vectors: torch.Tensor, seed: int) -> tuple[int, ...]:
    """A seed a row from the row's content and ``seed``, the same in any batch and process."""
    rows = vectors.detach().to("cpu", torch.float32).contiguous().numpy()
    key = (seed & _SEED_BITS).to_bytes(8, "little")
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest() for row in rows)
    return tuple(int.from_bytes(digest, "little") & _SEED_BITS for digest in digests)


def load_verbalizer(
    checkpoint: AvCheckpoint, settings: NlaSettings, *, dtype: torch.dtype, device: torch.device
) -> Verbalizer:
    """Build a verbalizer on the engine that the settings name.

    Remote engines need only the prompt's rows of the embedding table here.

    Raises:
        CheckpointError: the weights cannot be loaded.
        UnsupportedError: the settings ask for 8-bit weights that cannot be had.
    """
    name, _, url = settings.engine.partition(":")
    if name == "torch":
        model = load_causal_lm(checkpoint.source, dtype=dtype, device=device)
        local = TorchEngine(
            model,
            checkpoint.tokenizer,
            batch_size=settings.batch_size,
            is_frozen=True,
            is_int8=settings.cpu_weights == "int8",
        )
        builder = PromptBuilder(checkpoint, local.prompt_rows(checkpoint.prompt_ids))
        return Verbalizer(checkpoint, builder, local)
    builder = PromptBuilder(checkpoint, embedding_rows(checkpoint.source, checkpoint.prompt_ids))
    remote = VllmEngine if name == "vllm" else SglangEngine
    return Verbalizer(checkpoint, builder, remote(url, timeout_s=settings.timeout_s))
