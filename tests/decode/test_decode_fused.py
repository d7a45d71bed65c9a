from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_nla
import torch
from transformers import AutoModelForCausalLM

from nae_monitor.decode.checkpoint import open_av
from nae_monitor.decode.engines import fused
from nae_monitor.decode.engines.fused import FusedDecoder, foreseen, unsupported
from nae_monitor.decode.engines.key_values import CacheShape
from nae_monitor.decode.engines.packed import PackedLinear
from nae_monitor.decode.engines.torch_engine import TorchEngine
from nae_monitor.decode.prompts import PromptBatch, Sampling

known = pytest.mark.parametrize("family", ["llama", "qwen2"])


def engines(tiny: Any, batch_size: int) -> tuple[TorchEngine, TorchEngine]:
    """On the general path, and on the one for weights that stay."""
    directory = tiny.official[0]
    tokenizer = open_av(directory, tiny.resolve).tokenizer
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return (
        TorchEngine(model, tokenizer, batch_size=batch_size),
        TorchEngine(model, tokenizer, batch_size=batch_size, is_frozen=True),
    )


def prompts(count: int, *, tokens: int = 7, shared: int = 4) -> PromptBatch:
    noise = torch.Generator().manual_seed(count)
    rows = torch.randn(count, tokens, tiny_nla.D, generator=noise)
    rows[:, :shared] = rows[0, :shared]
    return PromptBatch(rows, shared)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("shared", [0, 4])
@pytest.mark.parametrize("seeds", [(), tuple(range(20))])
def test_texts_are_those_of_the_general_path(
    tiny: Any, batch_size: int, shared: int, seeds: tuple[int, ...]
) -> None:
    general, fast = engines(tiny, batch_size)
    sampling = Sampling(12, 0.8 if seeds else 0.0, seeds)
    batch = prompts(20, shared=shared)
    assert fast.generate(batch, sampling) == general.generate(batch, sampling)


@known
def test_texts_do_not_depend_on_the_order_of_admission(
    family: str, tiny_of: Callable[[str], Any]
) -> None:
    fast = engines(tiny_of(family), 4)[1]
    batch, sampling = prompts(20), Sampling(12)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    texts = fast.generate(batch, sampling)
    shuffled = fast.generate(PromptBatch(batch.embeddings[order], 4), sampling)
    assert shuffled == [texts[i] for i in order.tolist()]


@known
def test_logits_of_rows_of_different_lengths_are_the_models_own(
    family: str, tiny_of: Callable[[str], Any]
) -> None:
    model = engines(tiny_of(family), 1)[0]._model
    decoder = FusedDecoder(model)
    states = torch.randn(3, 9, tiny_nla.D, generator=torch.Generator().manual_seed(0))
    lengths = [3, 5, 8]
    cache = decoder.cache(3, 9)
    with torch.inference_mode():
        for row, length in enumerate(lengths):
            decoder.forward(states[row : row + 1, :length], cache, row, [0])
        nexts = torch.stack([states[i, n] for i, n in enumerate(lengths)])[:, None]
        logits = decoder.logits(decoder.forward(nexts, cache, 0, lengths))
        for row, length in enumerate(lengths):
            whole = model(inputs_embeds=states[row : row + 1, : length + 1]).logits[0, -1]
            torch.testing.assert_close(logits[row], whole, rtol=1e-4, atol=1e-4)


@known
def test_a_row_that_ended_in_nan_leaves_nothing_to_the_next(
    family: str, tiny_of: Callable[[str], Any]
) -> None:
    decoder = FusedDecoder(engines(tiny_of(family), 1)[0]._model)
    cache, prefix = decoder.cache(1, 6), decoder.cache(1, 2)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    cache.copy_prefix(prefix, 2, 0, 1)
    with torch.inference_mode():
        logits = decoder.logits(decoder.forward(torch.ones(1, 2, tiny_nla.D), cache, 0, [2]))
    assert torch.isfinite(logits).all()


def test_an_unknown_architecture_is_named_and_takes_the_general_path(
    tiny_of: Callable[[str], Any],
) -> None:
    fast = engines(tiny_of("gemma3"), 2)[1]
    assert fast.general_because is not None
    assert "Gemma3ForCausalLM" in fast.general_because


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_what_is_foreseen_of_a_configuration_is_what_the_engine_then_does(
    family: str, tiny_of: Callable[[str], Any]
) -> None:
    tiny = tiny_of(family)
    told = engines(tiny, 1)[1].general_because
    config = open_av(tiny.official[0], tiny.resolve).source.config
    assert foreseen(config, torch.device("cpu")) == told
    assert (told is None) == (family != "gemma3")
    assert foreseen(config, torch.device("cuda")) is not None


@pytest.mark.parametrize("change", ["rope", "activation", "wrapped", "device", "size"])
def test_what_the_pass_does_not_do_is_refused(
    llama: Any, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = engines(llama, 1)[0]._model
    assert unsupported(model) is None
    if change == "rope":
        model.config.rope_parameters["rope_type"] = "dynamic"
    elif change == "device":
        model.to("meta")
    elif change == "size":
        monkeypatch.setattr(fused, "MAX_COPY_BYTES", 1000)
    elif change == "activation":
        model.config.hidden_act = "gelu"
    else:
        layer = model.model.layers[0].self_attn
        layer.q_proj = torch.nn.Sequential(layer.q_proj)
    assert unsupported(model) is not None


@known
def test_caches_take_the_bytes_that_their_shape_says(
    family: str, tiny_of: Callable[[str], Any]
) -> None:
    cache = FusedDecoder(engines(tiny_of(family), 1)[0]._model).cache(3, 11)
    assert cache.size_bytes == cache.keys.nbytes + cache.values.nbytes
    assert cache.shape == CacheShape(tiny_nla.LAYERS, 3, 2, 11, 8)
    assert cache.size_bytes == 2 * tiny_nla.LAYERS * 3 * 2 * 11 * 8 * 4


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_layers_give_what_each_gives(has_bias: bool, dtype: torch.dtype) -> None:
    layers = [torch.nn.Linear(24, out, bias=has_bias, dtype=dtype) for out in (8, 40)]
    states = torch.randn(5, 24, dtype=dtype)
    with torch.inference_mode():
        expected = torch.cat([layer(states) for layer in layers], dim=1)
        torch.testing.assert_close(PackedLinear(*layers)(states), expected)


@pytest.mark.parametrize("kept", [0, 1, 3, 12])
@pytest.mark.parametrize("max_new_tokens", [1, 2, 12])
@pytest.mark.parametrize("seeds", [(), tuple(range(20))])
def test_a_draft_changes_no_text_whether_it_is_right_or_wrong(
    tiny: Any, kept: int, max_new_tokens: int, seeds: tuple[int, ...]
) -> None:
    """Drafts that begin as some row's text does, right for that one and for parts of others."""
    general, fast = engines(tiny, 6)
    sampling = Sampling(max_new_tokens, 0.8 if seeds else 0.0, seeds)
    batch = prompts(20)
    row = general._row(batch, 0, Sampling(12))
    general._run([row], 4, Sampling(12), {})
    wrong = [(i + 1) % 50 for i in row.ids]
    fast._draft = torch.tensor(row.ids[:kept] + wrong[kept:], dtype=torch.long)
    assert fast.generate(batch, sampling) == general.generate(batch, sampling)
