from __future__ import annotations

import math

import numpy as np
import pytest
import tiny_nla
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.decode import FidelityReference, check_vectors, fve, measure, screen_vectors
from nae_monitor.errors import VectorError

seeds = st.integers(0, 10_000)


def rows(seed: int, count: int = 12) -> torch.Tensor:
    return tiny_nla.unit_rows(count, seed) * (1 + seed % 7)


def naive_fve(h: torch.Tensor, r: torch.Tensor) -> float:
    u = np.array([x / np.linalg.norm(x) for x in h.double().numpy()])
    v = np.array([x / np.linalg.norm(x) for x in r.double().numpy()])
    m = u.mean(axis=0)
    above = np.mean([np.sum((a - b) ** 2) for a, b in zip(u, v, strict=True)])
    below = np.mean([np.sum((a - m) ** 2) for a in u])
    return float(1 - above / below)


def mean_of(h: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(h.double(), dim=1).mean(0)


@settings(max_examples=40, deadline=None)
@given(a=seeds, b=seeds)
def test_fve_equals_the_definition_written_out(a: int, b: int) -> None:
    h, r = rows(a), rows(b + 1)
    assert fve(h, r, mean_of(h), None) == pytest.approx(naive_fve(h, r), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_a_perfect_direction_has_fve_one_at_any_length(seed: int, scale: float) -> None:
    h = rows(seed)
    assert fve(h, h * scale, mean_of(h), None) == pytest.approx(1.0, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_the_constant_mean_direction_never_has_positive_fve(seed: int) -> None:
    h = rows(seed)
    constant = mean_of(h).expand(len(h), -1)
    value = fve(h, constant, mean_of(h), None)
    assert value is not None
    assert value <= 1e-9


@settings(max_examples=30, deadline=None)
@given(a=seeds, b=seeds)
def test_the_set_figure_is_the_mean_of_the_single_ones(a: int, b: int) -> None:
    h, r = rows(a), rows(b + 1)
    reference = FidelityReference(mean_of(h).float(), 0.4, None)
    single = [measure(x, y, reference).fve for x, y in zip(h, r, strict=True)]
    assert fve(h, r, None, 0.4) == pytest.approx(math.fsum(f or 0 for f in single) / len(h))


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_rank_counts_the_bank_rows_that_fit_better(seed: int) -> None:
    bank = tiny_nla.unit_rows(256, seed)
    reference = FidelityReference(bank.mean(0), 0.5, bank)
    h, text_vector = rows(seed + 1, 1)[0], rows(seed + 2, 1)[0]
    found = measure(h, text_vector, reference)
    cosine = torch.nn.functional.cosine_similarity
    rivals = cosine(bank.double(), text_vector.double()[None])
    own = cosine(h.double(), text_vector.double(), dim=0)
    assert found.rank == 1 + sum(float(x) > float(own) for x in rivals)
    assert found.bank_size == 256
    assert measure(h, h, reference).rank == 1


def test_without_statistics_fve_and_rank_are_unknown() -> None:
    h = rows(1, 1)[0]
    found = measure(h, h, None)
    assert (found.fve, found.rank, found.bank_size) == (None, None, 0)
    assert found.cosine == pytest.approx(1.0)
    assert fve(rows(1), rows(2), None, None) is None


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_reconstruction_without_direction_is_unknown(bad: float) -> None:
    h = rows(1, 1)[0]
    found = measure(h, torch.full_like(h, bad), FidelityReference(h, 0.5, None))
    assert (found.cosine, found.fve, found.rank) == (None, None, None)
    assert fve(h[None], torch.full_like(h, bad)[None], None, 0.5) is None


def test_check_vectors_names_rows_and_reasons() -> None:
    batch = rows(3, 6)
    batch[1], batch[3, 2], batch[5, 0] = 0, math.nan, math.inf
    with pytest.raises(VectorError) as caught:
        check_vectors(batch, tiny_nla.D)
    assert "NaN or infinite: row 3, 5" in str(caught.value)
    assert "zero: row 1" in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("shape", [(2, 31), (32,), (1, 2, 32)])
def test_a_wrong_width_is_refused_with_both_widths(shape: tuple[int, ...]) -> None:
    with pytest.raises(VectorError, match="32"):
        check_vectors(torch.ones(shape), 32)


def test_whole_numbers_are_no_activations() -> None:
    with pytest.raises(VectorError, match="floating"):
        check_vectors(torch.ones(2, 32, dtype=torch.int64), 32)


def test_the_screen_marks_bad_rows_without_raising() -> None:
    batch = rows(3, 4).half()
    batch[0], batch[2, 1] = 0, math.nan
    found = screen_vectors(batch, tiny_nla.D)
    assert found.good.tolist() == [False, True, False, True]
    assert found.reasons == ("zero", None, "non_finite", None)
    assert screen_vectors(batch, 31).reasons == ("width",) * 4


def test_a_norm_that_overflows_float32_is_not_finite() -> None:
    assert screen_vectors(torch.full((1, 32), 1e30), 32).reasons == ("non_finite",)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=True), min_size=4, max_size=4),
        min_size=1,
        max_size=5,
    )
)
def test_checking_and_screening_agree(values: list[list[float]]) -> None:
    batch = torch.tensor(values)
    found = screen_vectors(batch, 4)
    if bool(found.good.all()):
        check_vectors(batch, 4)
    else:
        with pytest.raises(VectorError):
            check_vectors(batch, 4)
