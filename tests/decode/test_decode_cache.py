"""Decodings that serve again: exact where they must be, bounded, and never across tenants."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.decode import DecodeCache
from nae_monitor.decode.cache import ENTRY_OVERHEAD_BYTES
from nae_monitor.records import Decoding
from nae_monitor.settings import CacheSettings
from nae_monitor.testing import ManualClock

D = 16
PREFIX = (5, 6, 7)


def cache(clock: ManualClock | None = None, **changes: Any) -> DecodeCache:
    return DecodeCache(CacheSettings(**changes), D, clock or ManualClock())


def decoding(text: str) -> Decoding:
    return Decoding(text, True, 0.9, 0.5, 1, 8, "nla", 20, 1.5)


def axis(number: int, beside: float = 0.0) -> torch.Tensor:
    """Along one axis, and ``beside`` along the next."""
    found = torch.zeros(D)
    found[number % D], found[(number + 1) % D] = 3.0, 3.0 * beside
    return found


def test_a_row_after_the_same_tokens_gets_the_decoding_marked_as_reused() -> None:
    here = cache()
    home = here.partition("acme", "m")
    here.keep(home, here.prefix(PREFIX), axis(1), decoding("x"))
    reuse = here.find(home, here.prefix(PREFIX), axis(1, 1e-3))
    assert reuse is not None
    assert (reuse.how, reuse.decoding.text, reuse.decoding.reused) == ("prefix", "x", True)
    assert (reuse.decoding.tokens, reuse.decoding.seconds) == (0, 0.0)
    assert (reuse.decoding.fve, reuse.decoding.cosine) == (0.5, 0.9)


@pytest.mark.parametrize("tokens", [(5, 6), (5, 6, 8), (6, 6, 7), (5, 6, 7, 7), (56, 7)])
def test_other_tokens_find_nothing(tokens: tuple[int, ...]) -> None:
    here = cache()
    home = here.partition(None, "m")
    here.keep(home, here.prefix(PREFIX), axis(1), decoding("x"))
    assert here.find(home, here.prefix(tokens), axis(1)) is None


def test_the_same_tokens_with_another_activation_find_nothing() -> None:
    here = cache()
    home = here.partition(None, "m")
    here.keep(home, here.prefix(PREFIX), axis(1), decoding("an image stood there"))
    assert here.find(home, here.prefix(PREFIX), axis(1, 0.3)) is None


@pytest.mark.parametrize("near", [None, 0.95])
@pytest.mark.parametrize("other", [("b", "m"), (None, "m"), ("a", "n"), ("a\0m", ""), ("", "m")])
def test_no_other_tenant_or_model_finds_it(near: float | None, other: tuple[Any, str]) -> None:
    here = cache(near_cosine=near)
    key = here.prefix(PREFIX)
    here.keep(here.partition("a", "m"), key, axis(1), decoding("a's own words"))
    assert here.find(here.partition(*other), key, axis(1)) is None
    assert here.find(here.partition("a", "m"), key, axis(1)) is not None


def test_an_empty_tenant_is_not_the_same_as_none() -> None:
    here = cache()
    assert here.partition("", "m") != here.partition(None, "m")


def test_near_rows_find_the_nearest_at_or_above_the_threshold_only() -> None:
    here = cache(near_cosine=0.99)
    home = here.partition(None, "m")
    here.keep(home, None, axis(1, 0.0), decoding("far"))
    here.keep(home, None, axis(1, 0.10), decoding("near"))
    reuse = here.find(home, None, axis(1, 0.09))
    assert reuse is not None
    assert (reuse.how, reuse.decoding.text) == ("near", "near")
    assert here.find(home, None, axis(1, 0.5)) is None
    assert here.find(home, None, axis(9)) is None


def test_nothing_near_is_looked_for_unless_it_is_asked_for() -> None:
    here = cache()
    home = here.partition(None, "m")
    here.keep(home, None, axis(1), decoding("x"))
    assert here.find(home, None, axis(1)) is None


def test_entries_are_bounded_by_number_and_by_bytes() -> None:
    assert cache(entries=5).capacity == 5
    assert cache(limit_bytes=3 * (4 * D + ENTRY_OVERHEAD_BYTES)).capacity == 3
    assert cache(limit_bytes=1).capacity == 1


def test_an_entry_that_is_too_old_is_gone() -> None:
    clock = ManualClock()
    here = cache(clock, max_age_s=10.0, near_cosine=0.9)
    home = here.partition(None, "m")
    here.keep(home, here.prefix(PREFIX), axis(1), decoding("x"))
    clock.advance(10.5)
    assert here.find(home, here.prefix(PREFIX), axis(1)) is None
    assert len(here) == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 1), st.integers(0, 6)), min_size=1, max_size=80
    ),
    st.integers(1, 5),
)
def test_it_holds_what_a_plain_least_recently_used_map_holds(
    steps: list[tuple[bool, int, int]], capacity: int
) -> None:
    here, oracle = cache(entries=capacity), OrderedDict[tuple[int, int], str]()
    homes = [here.partition(str(n), "m") for n in range(2)]
    for step, (keeps, tenant, token) in enumerate(steps):
        key, vector = here.prefix((token,)), axis(token)
        if keeps:
            here.keep(homes[tenant], key, vector, decoding(str(step)))
            oracle.pop((tenant, token), None)
            oracle[tenant, token] = str(step)
            while len(oracle) > capacity:
                oracle.popitem(last=False)
        else:
            reuse = here.find(homes[tenant], key, vector)
            assert (reuse and reuse.decoding.text) == oracle.get((tenant, token))
            if reuse:
                oracle.move_to_end((tenant, token))
        assert len(here) == len(oracle)
