from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.train.families import assign_splits, family_ids, shingles

words = st.lists(st.sampled_from("abc"), min_size=0, max_size=12).map(" ".join)
# Copies with one word changed, so that near-duplicates are common and sit near the threshold.
texts = st.lists(words, min_size=1, max_size=4).flatmap(
    lambda own: st.lists(
        st.tuples(st.sampled_from(own), st.sampled_from(["", " a", " z", " A  B"])).map("".join),
        min_size=1,
        max_size=10,
    )
)
SHARES = {"validation_share": 0.2, "test_share": 0.3}


def naive(texts: list[str]) -> set[frozenset[int]]:
    """Connected components by comparing every pair and merging until nothing changes."""
    groups = [{i} for i in range(len(texts))]
    for a, b in itertools.combinations(range(len(texts)), 2):
        left, right = shingles(texts[a]), shingles(texts[b])
        if len(left & right) / len(left | right) >= 0.8:
            first = next(g for g in groups if a in g)
            second = next(g for g in groups if b in g)
            if first is not second:
                groups.remove(second)
                first |= second
    return {frozenset(g) for g in groups}


def partition(families: list[int]) -> set[frozenset[int]]:
    return {frozenset(i for i, f in enumerate(families) if f == family) for family in set(families)}


@settings(max_examples=200)
@given(texts)
def test_families_are_the_components_that_comparing_every_pair_finds(texts: list[str]) -> None:
    assert partition(family_ids(texts)) == naive(texts)


@given(texts)
def test_a_family_is_never_divided_between_splits(texts: list[str]) -> None:
    splits = assign_splits(texts, **SHARES)
    for group in naive(texts):
        assert len({splits[i] for i in group}) == 1


@given(texts, st.randoms())
def test_the_order_of_the_texts_does_not_matter(texts: list[str], random: object) -> None:
    splits = dict(zip(texts, assign_splits(texts, **SHARES), strict=True))
    random.shuffle(texts)  # type: ignore[attr-defined]
    assert dict(zip(texts, assign_splits(texts, **SHARES), strict=True)) == splits


@given(texts, words)
def test_a_new_text_moves_no_text_of_a_family_it_does_not_join(texts: list[str], new: str) -> None:
    before = assign_splits(texts, **SHARES)
    after = assign_splits([*texts, new], **SHARES)
    families = family_ids([*texts, new])
    for i in range(len(texts)):
        if families[i] != families[-1]:
            assert after[i] == before[i]


def test_a_link_between_two_families_can_move_one_of_them() -> None:
    """The documented limit: splits are stable, but not under a text that joins families."""
    words = [f"w{i}" for i in range(40)]
    low, high, link = " ".join(words[:34]), " ".join(words[5:39]), " ".join(words[2:37])
    moved = False
    for n in range(40):
        pair = [f"{low} {n}", f"{high} {n}"]
        assert len(partition(family_ids(pair))) == 2
        assert len(partition(family_ids([*pair, f"{link} {n}"]))) < 3
        moved |= (
            assign_splits(pair, **SHARES) != assign_splits([*pair, f"{link} {n}"], **SHARES)[:2]
        )
    assert moved


def test_the_shares_of_the_splits_are_kept_on_many_texts() -> None:
    splits = assign_splits([f"text {n} {n * 7}" for n in range(4000)], **SHARES)
    assert abs(splits.count("test") / 4000 - 0.3) < 0.03
    assert abs(splits.count("validation") / 4000 - 0.2) < 0.03
