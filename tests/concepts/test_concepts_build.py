"""Directions from words, means and probes, against rows in which a concept was planted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf

from nae_monitor.concepts import (
    Backend,
    Concept,
    LabelledRows,
    Ordinary,
    Whitening,
    against_chance,
    build,
    directions_of,
    evaluate,
    only,
)
from nae_monitor.concepts.build import Built
from nae_monitor.concepts.concept import NEUTRAL, themed

D = 24
PLANTED = np.eye(D)[3]
FRAMES = [f'at " {n}"; expects " a| b"; small talk: x; prompt "says {n}' for n in range(5)]


def planted(documents: int = 400, seed: int = 0, strength: float = 0.6) -> LabelledRows:
    """Rows whose noise is large in some directions; every third document has the concept."""
    chance = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(documents), 4)
    hostile = numbers % 3 == 0
    noise = chance.normal(size=(len(numbers), D)) * np.linspace(2.0, 0.3, D)
    rows = noise + 4 + strength * hostile[:, None] * PLANTED * 5
    return LabelledRows(
        rows / np.linalg.norm(rows, axis=1, keepdims=True),
        numbers,
        np.where(hostile, "cyber", "facts"),
        hostile,
        np.arange(len(numbers)) % 2 == 0,
    )


def reconstruct(texts: Sequence[str]) -> np.ndarray:
    """A reconstructor that knows how a text speaks of the concept."""
    found = np.full((len(texts), D), 4.0)
    found[["malware" in text for text in texts]] += 3 * PLANTED
    return found


def built(backend: Backend, rows: LabelledRows) -> Built:
    return build(
        backend,
        rows,
        Whitening.of(rows.ordinary),
        concepts=[Concept("cyber", ("asks for malware",))],
        frames=FRAMES,
        reconstruct=reconstruct,
    )


@pytest.mark.parametrize("backend", ["ar", "contrast", "probe"])
def test_a_planted_concept_is_found_again(backend: Backend) -> None:
    found = built(backend, planted())
    beaten = against_chance(found, planted(seed=1))
    assert beaten.kept == ("cyber",)
    assert beaten.aurocs["cyber"] > 0.9
    assert beaten.chance < 0.85


def test_random_directions_are_left_out() -> None:
    found = built("random", planted())
    assert against_chance(found, planted(seed=1)).kept == ()
    with pytest.raises(ValueError, match="no direction beats"):
        only(found, ())


def test_whitening_is_the_shrunk_covariance_of_ordinary_rows() -> None:
    ordinary = planted().ordinary
    oracle = LedoitWolf(assume_centered=True).fit(ordinary.unit - ordinary.unit.mean(0))
    found = Whitening.of(ordinary)
    assert np.allclose(found.precision @ oracle.covariance_, np.eye(D), atol=1e-6)


def test_without_words_there_is_no_direction_from_words() -> None:
    rows = planted()
    with pytest.raises(ValueError, match="ar needs"):
        build("ar", rows, Whitening.of(rows.ordinary))


def test_a_text_that_cannot_be_reconstructed_is_left_out_of_the_mean() -> None:
    def partly(texts: Sequence[str]) -> np.ndarray:
        found = reconstruct(texts)
        found[0] = np.nan
        return found

    rows = planted()
    one = build("ar", rows, Whitening.of(rows.ordinary), frames=FRAMES, reconstruct=partly,
                concepts=[Concept("cyber", ("asks for malware",))])  # fmt: skip
    assert np.allclose(one.weights, built("ar", rows).weights)


def test_figures_are_of_other_documents_than_the_threshold() -> None:
    train = planted()
    found = built("contrast", train)
    halves = Ordinary.of(train)
    directions = directions_of(found, halves.scale, base_model="m", layer=2, provenance={})
    measured = evaluate(directions, halves.scale, planted(seed=5), planted(seed=6).ordinary)
    assert measured.auroc.value > 0.9
    assert measured.auroc.low <= measured.auroc.value <= measured.auroc.high
    assert measured.recall.value > 0.5
    assert measured.false_positives.value < 0.06
    assert measured.foreign_false_positives is not None
    blind = directions_of(built("random", train), halves.scale, base_model="m", layer=2,
                          provenance={})  # fmt: skip
    assert evaluate(blind, halves.scale, planted(seed=5)).auroc.value < 0.8


def test_documents_are_not_split_between_fit_and_scale() -> None:
    halves = Ordinary.of(planted())
    assert not set(halves.fit.documents) & set(halves.scale.documents)
    assert not halves.fit.hostile.any()
    assert not halves.scale.hostile.any()
    assert len(halves.fit) + len(halves.scale) == len(planted().ordinary)


@given(st.sampled_from(NEUTRAL), st.sampled_from(FRAMES))
def test_only_the_theme_of_an_explanation_changes(phrase: str, frame: str) -> None:
    (text,) = themed([frame], phrase)
    head, tail = frame.split("small talk: x")
    assert text == head + phrase + tail
    assert themed([text], "small talk: x") == [frame]


def test_an_explanation_of_another_form_has_the_phrase_in_front() -> None:
    assert themed(["A user asks about dogs."], "malware") == ["malware. A user asks about dogs."]
