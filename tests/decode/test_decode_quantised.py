"""Weights of 8 bits: what they compute, how far off that is, and where they are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_nla
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nae_monitor.decode import Nla, load_nla, load_verbalizer, open_av, verbalizer_weights
from nae_monitor.decode.engines import quantised
from nae_monitor.decode.engines.fused import FusedDecoder
from nae_monitor.decode.engines.quantised import LARGEST, ZERO, Int8Linear, lacking, rounded_rows
from nae_monitor.errors import UnsupportedError
from nae_monitor.models import resolve_nla, resolve_target
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV, NlaSettings

CPU = torch.device("cpu")
needed = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))


def linears(*widths: int, inputs: int = 24, bias: bool = False) -> list[torch.nn.Linear]:
    torch.manual_seed(sum(widths))
    return [torch.nn.Linear(inputs, width, bias=bias) for width in widths]


def rows(count: int, width: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def joined(layers: list[torch.nn.Linear]) -> tuple[Tensor, Tensor]:
    weight = torch.cat([layer.weight.detach() for layer in layers]).double()
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    return weight, torch.cat(biases).double() if biases else torch.zeros(len(weight)).double()


@needed
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_product_is_that_of_the_rounded_numbers(count: int, bias: bool) -> None:
    layers, states = linears(8, 40, bias=bias), rows(count)
    weight, offset = joined(layers)
    steps, step = rounded_rows(weight.float())
    given_steps, given_step = rounded_rows(states)
    whole = (given_steps.double() - ZERO) @ (steps.double() - ZERO).T
    expected = whole * given_step.double() * step.double().T + offset
    with torch.inference_mode():
        found = Int8Linear(*layers)(states)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@needed
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 50),
    spread=st.sampled_from([1e-3, 1.0, 300.0]),
)
def test_it_is_never_further_off_than_half_a_step_of_each_number_makes(
    seed: int, inputs: int, outputs: int, spread: float
) -> None:
    layers, states = linears(outputs, inputs=inputs), rows(3, inputs, seed) * spread
    weight, _ = joined(layers)
    exact = states.double() @ weight.T
    step = weight.abs().amax(1) / LARGEST / 2
    given_step = states.double().abs().amax(1, keepdim=True) / LARGEST / 2
    allowed = (
        states.double().abs().sum(1, keepdim=True) * step
        + given_step * weight.abs().sum(1)
        + inputs * given_step * step
    )
    with torch.inference_mode():
        found = Int8Linear(*layers)(states)
    assert bool(((found.double() - exact).abs() <= allowed * 1.001 + 1e-6).all())


@needed
def test_a_row_is_the_same_to_the_last_bit_whatever_stands_beside_it() -> None:
    layer, states = Int8Linear(*linears(40)), rows(9)
    states[3] *= 1e4
    states[5] = 0
    states[7, 2] = torch.nan
    with torch.inference_mode():
        together = layer(states)
        alone = torch.cat([layer(row[None]) for row in states])
    good = [i for i in range(9) if i != 7]
    assert torch.equal(together[good], alone[good])
    assert bool(together[7].isnan().all())
    assert not bool(together[5].any())


@needed
def test_joined_operations_are_the_product_and_then_theirs() -> None:
    layer, states, other = Int8Linear(*linears(40)), rows(4), rows(4, 40, seed=1)
    with torch.inference_mode():
        plain = layer(states)
        assert torch.equal(layer.silu(states), torch.nn.functional.silu(plain))
        assert torch.equal(layer.times(states, other), plain * other)
        assert torch.equal(layer.plus(states, other), plain + other)


def load(tiny: Any, **options: Any) -> Nla:
    settings_of = NlaSettings(device="cpu", max_new_tokens=12, **options)
    return load_nla(*tiny.official, settings=settings_of, resolve_base=tiny.resolve)


@needed
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_logits_are_near_those_of_whole_weights(family: str, tiny_of: Callable[[str], Any]) -> None:
    model = tiny_nla.build_model(family, 320, tiny_nla.LAYERS)
    states = torch.randn(6, 5, tiny_nla.D, generator=torch.Generator().manual_seed(3))
    logits = []
    for is_int8 in (False, True):
        decoder = FusedDecoder(model, is_int8=is_int8)
        with torch.inference_mode():
            last = decoder.forward(states, decoder.cache(6, 5), 0, [0] * 6)
            logits.append(decoder.logits(last))
    gap = (logits[1] - logits[0]).norm() / logits[0].norm()
    assert 0 < float(gap) < 0.25  # random layers multiply it; of a wrong layer it is above 1


@needed
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_pair_decodes_with_them_and_says_so(family: str, tiny_of: Callable[[str], Any]) -> None:
    tiny = tiny_of(family)
    batch = 3 * torch.randn(7, tiny_nla.D, generator=torch.Generator().manual_seed(2))
    small, whole = load(tiny, cpu_weights="int8"), load(tiny)
    assert (small.verbalizer.weights, whole.verbalizer.weights) == ("int8", "float32")
    found = small.decode(batch)
    assert [d.nla_id for d in found] == ["tiny-l2-v1"] * 7
    assert found[0].text == small.decode(batch[:1])[0].text
    # What scores a text is as it was: the same text has the same figures.
    again = whole.measured(batch, found)
    assert [(d.cosine, d.fve) for d in again] == [(d.cosine, d.fve) for d in found]


@needed
def test_the_embedded_pair_loses_little_fve() -> None:
    """Eight activations out of the pair's own reference set."""
    wanted = {name: NlaSettings(device="cpu", cpu_weights=name) for name in ("float32", "int8")}
    av, ar = resolve_nla(EMBEDDED_AV), resolve_nla(EMBEDDED_AR)
    nla = load_nla(av, ar, settings=wanted["float32"], resolve_base=resolve_target)
    small = load_verbalizer(
        open_av(av, resolve_target), wanted["int8"], dtype=torch.float32, device=CPU
    )
    assert nla.reference is not None
    assert nla.reference.bank is not None
    vectors = nla.reference.bank[::32].float() * 230
    whole = nla.decode(vectors)
    rounded = nla.measured(vectors, small.decode(vectors))
    means = [sum(one.fve or 0.0 for one in found) / len(vectors) for found in (whole, rounded)]
    assert means[0] > 0.3  # else there would be nothing to lose
    assert means[1] > means[0] - 0.1


def test_an_architecture_without_the_fused_pass_is_refused(
    tiny_of: Callable[[str], Any],
) -> None:
    with pytest.raises(UnsupportedError, match=r"cannot be int8.*Gemma3ForCausalLM"):
        load(tiny_of("gemma3"), cpu_weights="int8")


def test_a_processor_that_cuts_products_off_is_refused(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(rounded: Tensor, *_: Tensor) -> Tensor:
        return torch.full((len(rounded), 32), 32767.0)  # as vpmaddubsw adds in pairs

    monkeypatch.setattr(quantised, "_product", cut_off)
    quantised.lacking.cache_clear()
    try:
        with pytest.raises(UnsupportedError, match="this processor cuts off"):
            load(llama, cpu_weights="int8")
    finally:
        quantised.lacking.cache_clear()


def test_a_torch_without_the_products_is_refused(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Tensor) -> Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(quantised, "_product", missing)
    quantised.lacking.cache_clear()
    try:
        with pytest.raises(UnsupportedError, match="this build of torch has no"):
            load(llama, cpu_weights="int8")
    finally:
        quantised.lacking.cache_clear()


def test_a_machine_that_would_take_its_gpu_is_refused(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    checkpoint = open_av(llama.official[0], llama.resolve)
    with pytest.raises(UnsupportedError, match="it would run on cuda"):
        verbalizer_weights(checkpoint, NlaSettings(cpu_weights="int8"))
    assert verbalizer_weights(checkpoint, NlaSettings()) == "float32"  # the checkpoint's own


def test_a_server_has_weights_of_its_own(llama: Any) -> None:
    checkpoint = open_av(llama.official[0], llama.resolve)
    assert verbalizer_weights(checkpoint, NlaSettings(engine="vllm:http://127.0.0.1:1")) is None
