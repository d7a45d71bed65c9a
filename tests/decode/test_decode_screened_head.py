"""The likeliest token found by 8-bit products is that of the float32 product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nae_monitor.decode.engines import screened_head
from nae_monitor.decode.engines.quantised import Int8Weights, lacking, rounded_rows
from nae_monitor.decode.engines.screened_head import Best, ScreenedHead

pytestmark = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
WIDTH, VOCABULARY = 288, 700


def made(seed: int, *, spread: float = 0.0, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    """Weights of different lengths and states, some numbers of which are far larger than others."""
    noise = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, WIDTH, generator=noise) * 0.1
    weight *= 1 + torch.rand(vocabulary, 1, generator=noise)
    states = torch.randn(9, WIDTH, generator=noise)
    states[:, :3] *= 1 + spread
    return weight, states


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9_999),
    spread=st.sampled_from([0.0, 8.0, 60.0]),
    part_tokens=st.sampled_from([64, 333, 4096]),
)
def test_the_best_is_that_of_exact_products(seed: int, spread: float, part_tokens: int) -> None:
    weight, states = made(seed, spread=spread)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screened_head, "PART_TOKENS", part_tokens)
        found = ScreenedHead(weight).best(states)
    exact = states.double() @ weight.double().T
    assert found is not None
    assert found.ids.tolist() == exact.argmax(1).tolist()
    torch.testing.assert_close(found.scores[:, 0].double(), exact.amax(1), rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9_999), gap=st.sampled_from([1e-2, 1e-3, 1e-4]))
def test_of_tokens_that_are_all_nearly_best_the_two_best_are_told_exactly(
    seed: int, gap: float
) -> None:
    weight, states = made(seed)
    noise = torch.Generator().manual_seed(seed + 1)
    # Fifty tokens along the first state, as good as each other but for the gap.
    close = states[0] / states[0].norm() + gap * torch.randn(50, WIDTH, generator=noise) / WIDTH
    weight[torch.randperm(VOCABULARY, generator=noise)[:50]] = 3 * close
    found = ScreenedHead(weight).best(states[:1])
    first, second = (states[:1].double() @ weight.double().T)[0].topk(2).values
    assert found is not None
    expected = torch.stack([first, second]).float()[None]
    torch.testing.assert_close(found.scores, expected, rtol=1e-5, atol=1e-5)


def test_equal_tokens_are_a_tie() -> None:
    weight, states = made(5)
    best = int((states[0] @ weight.T).argmax())
    weight[(best + 1) % VOCABULARY] = weight[best]
    found = ScreenedHead(weight).best(states[:1])
    assert found is not None
    assert found.scores[0, 0] == found.scores[0, 1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_states_that_are_not_finite_have_no_best(value: float) -> None:
    weight, states = made(1)
    states[4, 7] = value
    assert ScreenedHead(weight).best(states) is None


def test_a_state_of_zeros_has_every_token_as_its_best() -> None:
    weight, _ = made(2)
    found = ScreenedHead(weight).best(torch.zeros(1, WIDTH))
    assert found is not None
    assert found.scores.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("spread", [0.0, 20.0])
def test_errors_stay_far_within_what_is_allowed_for(spread: float) -> None:
    """Of some million logits the largest error has about five deviations, where eight are borne."""
    worst = 0.0
    for seed in range(20):
        weight, states = made(seed, spread=spread, vocabulary=6_000)
        rounded = Int8Weights(weight)
        shifted, scale = rounded_rows(states)
        off = rounded.product(shifted).double() * scale - states.double() @ weight.double().T
        steps = (scale * weight.norm(dim=1)).square()
        steps = steps + (states.norm(dim=1, keepdim=True) * rounded.scale).square()
        worst = max(worst, float((off.abs() / (steps / 12).sqrt()).max()))
    assert 3.0 < worst < screened_head.DEVIATIONS - 2


def test_the_best_of_all_scores_is_told_with_the_second() -> None:
    found = Best.of(torch.tensor([[1.0, 5.0, 3.0], [2.0, -1.0, 2.0]]))
    assert found.ids.tolist()[0] == 1
    assert found.scores.tolist() == [[5.0, 3.0], [2.0, 2.0]]
