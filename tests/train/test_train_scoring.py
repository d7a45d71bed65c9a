from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_trainer import make_examples, make_one

from nae_monitor.train.expert import gains, mixed
from nae_monitor.train.sampling import Sampled
from nae_monitor.train.scoring import Choice, centred, choose, contrastive_scores, hard_negatives
from nae_monitor.train.written import as_target

GOOD = 'at "a"; expects "b"; small talk; prompt "say '


def text(number: int) -> str:
    return f"{GOOD}{number}"


def test_a_text_in_form_is_its_own_target() -> None:
    for number in range(12):
        own = make_one(number)
        found = as_target(own.text)
        assert found is not None
        assert found.text == own.text
        assert (found.last_token, found.following, found.theme, found.speaker, found.last) == (
            own.last_token,
            own.following,
            own.theme,
            own.speaker,
            own.last,
        )


@given(st.text(max_size=60))
def test_any_other_text_is_refused_or_comes_out_as_it_went_in(written: str) -> None:
    found = as_target(written)
    assert found is None or found.text == written


@pytest.mark.parametrize("written", ["", "at", text(1)[3:], text(1) + '" more', " " + text(1)])
def test_a_text_out_of_form_is_no_target(written: str) -> None:
    assert as_target(written) is None


def test_hard_negatives_are_the_nearest_rows_of_other_documents() -> None:
    generator = torch.Generator().manual_seed(0)
    own = centred(torch.randn(30, 8, generator=generator), torch.zeros(8))
    documents = [f"d{n // 3}" for n in range(30)]
    found = hard_negatives(own, documents, 5)
    assert found.shape == (30, 5)
    for row, others in enumerate(found.tolist()):
        allowed = [n for n in range(30) if documents[n] != documents[row]]
        nearest = sorted(allowed, key=lambda n: -float(own[row] @ own[n]))[:5]
        assert others == nearest


def test_the_score_is_the_own_cosine_less_the_mean_of_the_negatives() -> None:
    own = torch.eye(4)
    others = torch.stack([own[[1, 2]]] * 4)
    predicted = centred(torch.tensor([[1.0, 0, 0, 0]] * 4), torch.zeros(4))
    scores = contrastive_scores(predicted, own, others)
    assert scores.tolist() == [1.0, 0.0, 0.0, 0.0]
    wrong = contrastive_scores(own[[1] * 4], own, others)
    assert wrong.tolist() == [-0.5, 0.5, -0.5, -0.5]  # the mean of the two negatives is 0.5


def test_without_another_document_the_score_is_the_own_cosine() -> None:
    own = torch.eye(3)
    negatives = hard_negatives(own, ["one"] * 3, 4)
    assert negatives.shape == (3, 0)
    assert contrastive_scores(own, own, own[negatives]).tolist() == [1.0, 1.0, 1.0]


def test_the_best_usable_text_is_kept_and_the_greedy_one_where_nothing_beats_it() -> None:
    sampled = [
        Sampled(7, (text(0), text(1), text(2))),
        Sampled(8, (text(0), text(1), "out of form")),
        Sampled(9, (None, text(1), None)),
        Sampled(10, (None, "out of form", None)),
        Sampled(11, (text(0), text(1), text(2))),
    ]
    scores = [[0.1, 0.3, 0.2], [0.2, 0.2, 0.9], [0.9, -0.4, 0.9], [1, 1, 1], [0.1, math.nan, 0.0]]
    found = choose(sampled, scores)
    assert [(c.row, c.greedy_score, c.best, c.best_score) for c in found] == [
        (7, 0.1, text(1), 0.3),
        (8, 0.2, text(0), 0.2),
        (9, None, text(1), -0.4),
        (10, None, None, None),
        (11, 0.1, text(0), 0.1),
    ]


def test_kept_texts_become_targets_of_their_own_vectors_among_as_many_ordinary_rows() -> None:
    train = make_examples(20, 0)
    choices = [
        Choice(3, text(0), 0.1, text(5), 0.4),
        Choice(6, None, None, None, None),
        Choice(9, text(1), 0.2, text(1), 0.2),
    ]
    found = mixed(train, choices, seed=1)
    assert len(found) == 4
    assert [t.text for t in found.targets[:2]] == [text(5), text(1)]
    assert torch.equal(found.vectors[:2], train.vectors[[3, 9]])
    originals = {t.text: v for t, v in zip(train.targets, train.vectors, strict=True)}
    for target, vector in zip(found.targets[2:], found.vectors[2:], strict=True):
        assert torch.equal(originals[target.text], vector)


def test_gains_compare_rows_where_both_texts_are_usable() -> None:
    found = gains(
        [
            Choice(1, text(0), 0.1, text(5), 0.4),
            Choice(2, text(1), 0.3, text(1), 0.3),
            Choice(3, None, None, text(5), 0.9),
            Choice(4, None, None, None, None),
        ]
    )
    assert found["greedy_score"] == pytest.approx(0.2)
    assert found["best_score"] == pytest.approx(0.35)
    assert (found["rows"], found["kept"], found["distinct"]) == (4, 3, 2)
    assert found["better_than_greedy"] == 2
    assert gains([])["greedy_score"] is None
