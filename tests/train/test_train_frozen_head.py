from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from nae_monitor.train.frozen_head import CHUNK_ROWS, frozen_head_losses

edges = st.sampled_from([0, 1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 2 * CHUNK_ROWS + 3])


def case(
    n: int, d: int, v: int, scale: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """States [n, d], head [v, d], ids [n], and a weight for each row's loss, some zero."""
    generator = torch.Generator().manual_seed(seed)
    states = scale * torch.randn(n, d, generator=generator)
    weight = torch.randn(v, d, generator=generator)
    ids = torch.randint(v, (n,), generator=generator)
    rows = torch.randn(n, generator=generator).relu()
    return states, weight, ids, rows


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(st.integers(0, 8), edges),
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from([0.01, 1.0, 30.0]),
    st.integers(0, 1000),
)
@example(2 * CHUNK_ROWS, 5, 300, 30.0, 0)
def test_values_and_gradients_are_those_of_torchs_cross_entropy(
    n: int, d: int, v: int, scale: float, seed: int
) -> None:
    states, weight, ids, rows = case(n, d, v, scale, seed)
    found, expected = (states.clone().requires_grad_() for _ in range(2))
    losses = frozen_head_losses(found, weight, ids)
    plain = cross_entropy(expected @ weight.T, ids, reduction="none")
    torch.testing.assert_close(losses, plain, rtol=1e-4, atol=1e-4)
    (losses * rows).sum().backward()
    (plain * rows).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-4)


def test_the_gradient_agrees_with_finite_differences() -> None:
    states, weight, ids, rows = case(4, 3, 7, 1.0, 0)
    leaf = states.clone().requires_grad_()
    (frozen_head_losses(leaf, weight, ids) * rows).sum().backward()
    step = 1e-2
    for place in [(i, j) for i in range(4) for j in range(3)]:
        sides = []
        for sign in (1, -1):
            moved = states.clone()
            moved[place] += sign * step
            sides.append(float((frozen_head_losses(moved, weight, ids) * rows).sum()))
        slope = (sides[0] - sides[1]) / (2 * step)
        assert float(leaf.grad[place]) == pytest.approx(slope, abs=2e-3)  # type: ignore[index]


def test_states_and_head_are_left_as_they_were() -> None:
    states, weight, ids, _ = case(CHUNK_ROWS + 1, 4, 11, 1.0, 1)
    leaf, head = states.clone().requires_grad_(), weight.clone()
    frozen_head_losses(leaf, head, ids).sum().backward()
    assert torch.equal(leaf.detach(), states)
    assert torch.equal(head, weight)
    assert head.grad is None


def test_the_chain_rule_goes_on_behind_the_states() -> None:
    states, weight, ids, rows = case(CHUNK_ROWS + 2, 4, 11, 1.0, 2)
    layers = [torch.nn.Linear(4, 4, bias=False) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    (frozen_head_losses(layers[0](states).tanh(), weight, ids) * rows).mean().backward()
    plain = cross_entropy(layers[1](states).tanh() @ weight.T, ids, reduction="none")
    (plain * rows).mean().backward()
    torch.testing.assert_close(layers[0].weight.grad, layers[1].weight.grad, rtol=1e-4, atol=1e-5)


def test_a_head_in_bfloat16_gives_float32_losses_and_the_states_own_precision() -> None:
    states, weight, ids, _ = case(20, 16, 50, 1.0, 3)
    for dtype in (torch.float32, torch.bfloat16):
        leaf = states.clone().to(dtype).requires_grad_()
        losses = frozen_head_losses(leaf, weight.bfloat16(), ids)
        losses.sum().backward()
        assert losses.dtype == torch.float32
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        exact = states.clone().requires_grad_()
        plain = cross_entropy(exact @ weight.T, ids, reduction="none")
        plain.sum().backward()
        torch.testing.assert_close(losses, plain, rtol=0.05, atol=0.1)
        assert torch.cosine_similarity(leaf.grad.float(), exact.grad, dim=-1).min() > 0.99


def test_without_gradients_there_is_a_value_and_nothing_to_go_back_through() -> None:
    states, weight, ids, _ = case(5, 4, 11, 1.0, 4)
    with torch.no_grad():
        losses = frozen_head_losses(states.requires_grad_(), weight, ids)
    assert not losses.requires_grad
    torch.testing.assert_close(losses, cross_entropy(states @ weight.T, ids, reduction="none"))
