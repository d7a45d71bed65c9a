from __future__ import annotations

import numpy as np
from matching.ways import Compiled, expected_selections, interleaved, naive
from matching.workload import TEXT_CHARS, make_texts, make_workload

import rules


def test_a_workload_has_the_patterns_it_claims_and_texts_of_one_length() -> None:
    work = make_workload(1, 0)
    assert [len(set(x)) for x in (work.literals, work.patterns, work.phrases)] == [1000, 200, 200]
    assert work == make_workload(1, 0) != make_workload(1, 1)
    assert {len(t) for t in make_texts(work, 5, 0, planted=True)} == {TEXT_CHARS}


def test_both_ways_find_what_was_planted_and_nothing_else() -> None:
    work = make_workload(1, 0)
    plain, compiled = naive(work), Compiled(work)
    texts = make_texts(work, 12, 2, planted=True)
    kinds = {name for text in texts for _, name in compiled.selections(text)}
    assert kinds == {"words", "patterns", "phrases"}
    for text in texts:
        assert compiled.selections(text) == expected_selections(work, plain(text))


def test_agreement_sees_a_way_that_misses() -> None:
    work = make_workload(1, 0)
    compiled = Compiled(work)
    compiled.parts = compiled.parts[1:]
    texts = make_texts(work, 3, 2, planted=True)
    claim = rules.agreement("x", work, (naive(work), compiled), texts)
    assert (claim.value < 1, claim.holds) == (True, False)


def test_ways_take_turns_on_the_same_texts() -> None:
    seen: list[str] = []
    ways = {name: lambda text, name=name: seen.append(name + text) for name in "ab"}
    taken = interleaved(ways, ["1", "2"], ["0"])
    assert seen == ["a0", "b0", "a1", "a2", "b1", "b2"]
    assert {name: np.shape(values) for name, values in taken.items()} == {"a": (2,), "b": (2,)}


def test_recall_is_measured_on_true_pairs() -> None:
    claim = rules.prefilter_recall(40, 0)
    assert claim.holds is True
    assert "true pairs" in claim.name
