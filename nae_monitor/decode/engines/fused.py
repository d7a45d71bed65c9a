"""One pass of a Llama-shaped decoder over rows of different lengths, with static caches.

What a general implementation pays and this does not: a matrix product each for query, key and
value, activations and sums in passes of their own over memory, caches that are concatenated anew
for each token, masks and position tables that are rebuilt, and logits of tokens whose successor is
already known.

Architecture: RMS norm before attention and feed-forward, rotary positions, grouped-query attention,
SwiGLU (Touvron et al., arXiv 2302.13971; Qwen2 adds biases to query, key and value).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from nae_monitor.decode.engines.key_values import CacheShape, KeyValues, View
from nae_monitor.decode.engines.packed import PackedLinear
from nae_monitor.decode.engines.quantised import Int8Linear, lacking
from nae_monitor.decode.engines.screened_head import Best, ScreenedHead

# Frequencies that depend on neither the sequence's length nor the context's.
_STATIC_ROPES = frozenset({"default", "linear", "llama3"})
NOT_ON_CPU = "weights that are not on the CPU, where alone this pass was measured"
MAX_COPY_BYTES = 4 * 1024**3  # of weights laid out anew; a host must not run out of memory by it
MIN_SCREENED_WIDTH = (
    256  # of fewer numbers an error is not nearly normal, and little would be saved
)


def foreseen(config: Any, device: torch.device) -> str | None:
    """What :func:`unsupported` will say of a model with this configuration; nothing is loaded."""
    if device.type != "cpu":
        return NOT_ON_CPU
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return _unlike(model)


def unsupported(model: Any) -> str | None:
    """Why this pass cannot stand in for ``model``'s own, or None where it can."""
    reason = _unlike(model)
    if reason is None and {p.device.type for p in model.parameters()} != {"cpu"}:
        return NOT_ON_CPU
    return reason


def _unlike(model: Any) -> str | None:
    """What in its architecture or size speaks against this pass, wherever the weights lie."""
    if type(model) not in (LlamaForCausalLM, Qwen2ForCausalLM):
        return f"{type(model).__name__} is not a known architecture"
    config = model.config
    rope = config.rope_parameters.get("rope_type", "default")
    if rope not in _STATIC_ROPES:
        return f"rotary positions of type {rope}"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act}"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "attention in a window"
    blocks = model.model.layers
    linear = (
        layer
        for block in blocks
        for part in (block.self_attn, block.mlp)
        for name, layer in part.named_children()
        if name.endswith("_proj")
    )
    if any(type(layer) is not nn.Linear for layer in (*linear, model.lm_head)):
        return "linear layers that are wrapped"
    copied = (*blocks.parameters(), *model.lm_head.parameters())
    if sum(weight.nbytes for weight in copied) > MAX_COPY_BYTES:
        return f"weights whose copy would take more than {MAX_COPY_BYTES} bytes"
    return None


Linear = PackedLinear | Int8Linear


@dataclass(frozen=True, eq=False, slots=True)
class _Block:
    norm: Tensor
    qkv: Linear
    out: Linear
    ff_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear
    epsilon: float


class FusedDecoder:
    """Weights laid out for the pass; read-only and shared by all caches.

    Packed and fused weights are copies: ``extra_bytes`` beside the model's own weights.

    Args:
        model: of which :func:`unsupported` says None; its weights must not change afterwards.
        is_int8: round the weights of the blocks to 8 bits. Norms, embeddings and the language-model
            head, which decides between tokens that are nearly as likely, stay as they are.
    """

    def __init__(self, model: Any, *, is_int8: bool = False) -> None:
        config = model.config
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads)
        self.head_size = int(model.model.layers[0].self_attn.head_dim)
        linear = Int8Linear if is_int8 else PackedLinear
        self._blocks = [_block(layer, linear) for layer in model.model.layers]
        self._norm = model.model.norm.weight
        self._epsilon = float(model.model.norm.variance_epsilon)
        self._rotary = model.model.rotary_emb
        self._lm_head = PackedLinear(model.lm_head)
        self._screened = _screened(model.lm_head)
        self._embedding = model.model.embed_tokens.weight

    @property
    def extra_bytes(self) -> int:
        """Of the copies."""
        linear = (p for b in self._blocks for p in (b.qkv, b.out, b.gate, b.up, b.down))
        head = 0 if self._screened is None else self._screened.extra_bytes
        return head + self._lm_head.extra_bytes + sum(part.extra_bytes for part in linear)

    def cache(self, rows: int, capacity_tokens: int) -> KeyValues:
        """Empty caches for ``rows`` texts of at most ``capacity_tokens``, prompt included."""
        shape = CacheShape(len(self._blocks), rows, self.kv_heads, capacity_tokens, self.head_size)
        positions = torch.arange(capacity_tokens, device=self._embedding.device)[None]
        cos, sin = self._rotary(self._embedding[:1, None], positions)
        signed_sin = sin[0].clone()
        signed_sin[:, : self.head_size // 2].neg_()  # the rotation's one minus, once and for all
        return KeyValues(shape, cos[0], signed_sin, self._embedding)

    def embed(self, ids: Tensor) -> Tensor:
        """[n] token ids to [n, 1, d]."""
        return functional.embedding(ids, self._embedding)[:, None]

    def forward(self, states: Tensor, cache: KeyValues, first: int, starts: list[int]) -> Tensor:
        """What the last token of each row makes of all before it, [n, d]; see :meth:`logits`."""
        return self.forward_all(states, cache, first, starts)[:, -1]

    def forward_all(
        self, states: Tensor, cache: KeyValues, first: int, starts: list[int]
    ) -> Tensor:
        """What each token makes of all before it, [n, t, d].

        Args:
            states: [n, t, d] inputs of rows ``first`` to ``first + n - 1`` of the cache.
            cache: takes their keys and values.
            first: cache row of the first.
            starts: position of each row's first token here, from 0; what lies before is attended.
        """
        count, tokens, width = states.shape
        view = cache.view(first, starts, tokens, self.heads)
        hidden = states.reshape(count * tokens, width)
        for index, block in enumerate(self._blocks):
            hidden = self._attend(hidden, block, index, view)
            normed = _rms(hidden, block.ff_norm, block.epsilon)
            hidden = block.down.plus(block.up.times(normed, block.gate.silu(normed)), hidden)
        return hidden.view(count, tokens, width)

    def best(self, states: Tensor) -> Best:
        """The likeliest token after each of [n, d] last states."""
        if self._screened is not None:
            found = self._screened.best(_rms(states, self._norm, self._epsilon))
            if found is not None:
                return found
        return Best.of(self.logits(states))

    def logits(self, states: Tensor) -> Tensor:
        """Logits [n, vocabulary] of [n, d] last states."""
        logits: Tensor = self._lm_head(_rms(states, self._norm, self._epsilon))
        return logits.float()

    def _attend(self, hidden: Tensor, block: _Block, index: int, view: View) -> Tensor:
        normed = _rms(hidden, block.norm, block.epsilon)
        fused = block.qkv(normed)
        shape = (view.count, view.tokens, self.heads + 2 * self.kv_heads, self.head_size)
        fused = fused.view(shape).transpose(1, 2)  # [n, heads, t, head_size]
        rotated = _rotate(fused[:, : self.heads + self.kv_heads], view.cos, view.signed_sin)
        values = fused[:, self.heads + self.kv_heads :]
        keys_all, values_all = view.store(index, rotated[:, self.heads :], values)
        attended = view.attention(rotated[:, : self.heads], keys_all, values_all)
        return block.out.plus(attended, hidden)


def _screened(head: Any) -> ScreenedHead | None:
    weight = head.weight.detach()
    if (
        weight.dtype != torch.float32
        or weight.shape[1] < MIN_SCREENED_WIDTH
        or head.bias is not None
        or lacking() is not None
    ):
        return None
    return ScreenedHead(weight)


def _block(layer: Any, linear: type[Linear]) -> _Block:
    attention, feed = layer.self_attn, layer.mlp
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
    return _Block(
        layer.input_layernorm.weight,
        linear(*qkv),
        linear(attention.o_proj),
        layer.post_attention_layernorm.weight,
        linear(feed.gate_proj),
        linear(feed.up_proj),
        linear(feed.down_proj),
        float(layer.input_layernorm.variance_epsilon),
    )


def _rms(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = states.float()
    square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square()
    scale = torch.rsqrt(square / wide.shape[-1] + epsilon)
    return weight * (wide * scale).to(states.dtype)


def _rotate(states: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    left, right = states.chunk(2, dim=-1)
    return torch.addcmul(states * cos, torch.cat((right, left), dim=-1), signed_sin)
