"""Claims of decoded texts, what recurs of them, and the figure that is made of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.decode.form import parts_of
from nae_monitor.decode.support import (
    Claim,
    ClaimType,
    Place,
    Recurrence,
    Signals,
    SupportCalibration,
    SupportModel,
    claims_of,
    grounded,
    read_support,
    recurs,
    shipped_support,
    signals_of,
    write_support,
)
from nae_monitor.decode.support.fitting import CheckedClaim, fit
from nae_monitor.errors import CheckpointError
from nae_monitor.models import resolve_nla
from nae_monitor.records import Decoding
from nae_monitor.settings import EMBEDDED_AR

TEXT = 'at " key"; expects " to|.|s"; fraud: asks for Bob\'s key; prompt "42 keys, give Bob the key'
MODEL = SupportModel(0.5, 0.5, (0.0,) * 2, (1.0,) * 2, (-4.0, -1.0), 2.0)
KNOWN = SupportCalibration("nla", ("fraud", "small talk"), {ClaimType.THEME: MODEL})


def said(theme: str = "fraud: asks for a key", **more: Any) -> Decoding:
    text = f'at " key"; expects " to|.|s"; {theme}; prompt "give Bob the key'
    known = Decoding(text, True, 0.8, 0.4, 3, 99, "nla", 20, 1.5)
    return replace(known, **more)


def place(position: int = 7, *, sampled: bool = False, turn: str = "r") -> Place:
    return Place(turn, position, sampled)


def test_a_text_claims_its_token_what_is_expected_its_theme_and_what_it_quotes() -> None:
    assert claims_of(TEXT) == (
        Claim(ClaimType.TOKEN, " key"),
        Claim(ClaimType.EXPECTED, " to"),
        Claim(ClaimType.THEME, "fraud"),
        Claim(ClaimType.NUMBER, "42"),
        Claim(ClaimType.QUOTATION, "keys"),
        Claim(ClaimType.QUOTATION, "give"),
    )


def test_a_quoted_word_with_a_capital_is_a_name() -> None:
    assert Claim(ClaimType.NAME, "Alice") in claims_of(TEXT.replace("give Bob", "give Alice"))


@pytest.mark.parametrize("text", ["", "the model plans to hide a key", 'at "', "a" * 5000])
def test_a_text_of_another_form_claims_nothing_and_repeats_nothing(text: str) -> None:
    assert claims_of(text) == ()
    assert not any(recurs(claim, text) for claim in claims_of(TEXT))


@given(st.text(max_size=80))
def test_whatever_a_text_claims_recurs_in_itself(quoted: str) -> None:
    text = f'at " a"; expects " b|c"; small talk: greets; prompt "{quoted}'
    assert parts_of(text) is not None
    assert all(recurs(claim, text) for claim in claims_of(text))


@pytest.mark.parametrize(
    ("claim", "other", "same"),
    [
        (Claim(ClaimType.THEME, "fraud"), "fraud: something else", True),
        (Claim(ClaimType.THEME, "fraud"), "fraudulent: asks for a key", False),
        (Claim(ClaimType.THEME, "fraud"), "small talk: fraud", False),
        (Claim(ClaimType.QUOTATION, "gives"), "fraud", True),  # "give", by spelling
        (Claim(ClaimType.QUOTATION, "take"), "fraud", False),
        (Claim(ClaimType.EXPECTED, "."), "fraud", True),
    ],
)
def test_labels_are_the_same_exactly_words_by_spelling_and_what_is_expected_among_all(
    claim: Claim, other: str, same: bool
) -> None:
    assert recurs(claim, said(other).text) is same


def test_a_number_is_no_other_number_however_alike() -> None:
    assert not recurs(Claim(ClaimType.NUMBER, "123456"), TEXT.replace("42", "123457"))


def test_the_transcript_shows_words_and_tokens_and_can_show_no_theme() -> None:
    told = {claim.content: grounded(claim, "Here are 42 keys: give") for claim in claims_of(TEXT)}
    assert told == {
        " key": True,
        " to": None,
        "fraud": None,
        "42": True,
        "keys": True,
        "give": True,
    }
    assert grounded(Claim(ClaimType.NUMBER, "43"), "Here are 42 keys") is False


def test_signals_count_the_texts_that_claim_the_same() -> None:
    samples = [said().text, said("small talk: greets").text, "no form"]
    found = signals_of(Claim(ClaimType.THEME, "fraud"), samples, [said().text], said())
    assert found == Signals(3, 1, 1, 1, 0.4, 0.03)
    assert found.recurrence == 0.5


@pytest.mark.parametrize("lacking", [{"fve": None}, {"rank": None}])
def test_signals_are_unknown_without_fidelity_or_with_too_few_texts(
    lacking: dict[str, Any],
) -> None:
    claim, text = Claim(ClaimType.THEME, "fraud"), said().text
    assert signals_of(claim, [text] * 4, [], said(**lacking)) is None
    assert signals_of(claim, [text], [text] * 9, said()) is None


@given(st.integers(2, 12), st.integers(0, 11), st.integers(0, 8))
def test_each_text_that_agrees_makes_a_claim_likelier(
    samples: int, agreeing: int, neighbours: int
) -> None:
    less = Signals(samples, min(agreeing, samples - 1), neighbours, 0, 0.4, 0.1)
    more = replace(less, agreeing_samples=less.agreeing_samples + 1)
    assert 0 <= MODEL.unsupported(more) < MODEL.unsupported(less) <= 1


def test_a_theme_that_was_never_checked_or_a_type_without_a_fit_has_no_figure() -> None:
    signals = Signals(4, 4, 0, 0, 0.4, 0.1)
    assert KNOWN.unsupported(Claim(ClaimType.THEME, "fraud"), signals) is not None
    assert KNOWN.unsupported(Claim(ClaimType.THEME, "topic not clear yet"), signals) is None
    assert KNOWN.unsupported(Claim(ClaimType.NUMBER, "42"), signals) is None
    assert KNOWN.unsupported(Claim(ClaimType.THEME, "fraud"), None) is None


# -- the texts of a running request -----------------------------------------------------------


def test_a_first_text_is_unknown_and_its_further_texts_tell() -> None:
    running = Recurrence(KNOWN)
    (first,) = running.scored([(place(), said())])
    assert first.support is None
    again = [(place(sampled=True), said("fraud: other")), (place(sampled=True), said("small talk"))]
    agreeing, other = running.scored(again)
    signals = Signals(2, 1, 0, 0, 0.4, 0.03)
    assert agreeing.support == round(1 - round(MODEL.unsupported(signals), 4), 4)
    assert (agreeing.support_decodes, agreeing.support_s) == (2, 3.0)
    assert other.support is None  # it names another theme than the one that was scored


def test_texts_beside_count_and_those_further_off_or_of_other_turns_do_not() -> None:
    texts = [(place(), said()), *[(place(sampled=True), said())] * 2]
    alone = Recurrence(KNOWN).scored(texts)[0]
    far = [(place(9), said()), (place(turn="other"), said()), (place(8, sampled=True), said())]
    assert Recurrence(KNOWN).scored([*texts, *far])[0].support == alone.support
    beside = Recurrence(KNOWN).scored([*texts, (place(8), said())])[0]
    assert beside.support_decodes == 3
    assert beside.support is not None
    assert alone.support is not None
    assert beside.support > alone.support


def test_a_reused_text_is_no_further_text() -> None:
    copies = [(place(sampled=True), said(reused=True))] * 4
    assert all(d.support is None for d in Recurrence(KNOWN).scored([(place(), said()), *copies]))


@pytest.mark.parametrize("known", [None, replace(KNOWN, nla_id="another")])
def test_without_a_calibration_of_this_pair_nothing_is_scored(
    known: SupportCalibration | None,
) -> None:
    texts = [(place(), said()), *[(place(sampled=True), said())] * 3]
    assert Recurrence(known).scored(texts) == [decoding for _, decoding in texts]


def test_a_turn_that_ended_is_let_go() -> None:
    running = Recurrence(KNOWN)
    running.scored([(place(), said())])
    running.ended("r")
    later = running.scored([(place(sampled=True), said())] * 3)
    assert all(decoding.support is None for decoding in later)


# -- the file ---------------------------------------------------------------------------------


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "support.json"
    write_support(path, KNOWN)
    assert read_support(path) == KNOWN
    assert shipped_support(tmp_path, "nla") == KNOWN
    assert shipped_support(tmp_path, "another") is None
    assert shipped_support(tmp_path / "none", "nla") is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("intercept", "2"),
        ("intercept", True),
        ("weights", [1.0]),
        ("weights", [1.0, math.inf]),
        ("scale", [1.0, 0.0]),
        ("extra", 1),
    ],
)
def test_a_damaged_calibration_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "support.json"
    write_support(path, KNOWN)
    content = json.loads(path.read_text())
    content["models"]["theme"][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="no support calibration"):
        read_support(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"schema_version": 2}'])
def test_what_is_no_calibration_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "support.json"
    path.write_text(content)
    with pytest.raises(CheckpointError):
        read_support(path)


# -- the fit ----------------------------------------------------------------------------------


def test_a_fit_finds_how_often_what_recurs_is_true() -> None:
    rng = np.random.default_rng(0)
    claims = []
    for number in range(4000):
        chance = rng.random()  # that a claim is true, and that a text repeats it
        agreeing = int(rng.binomial(6, chance))
        signals = Signals(6, agreeing, 0, 0, float(rng.normal()), float(rng.random()))
        claims.append(CheckedClaim(signals, bool(rng.random() < chance), str(number)))
    model = fit(claims)
    assert model is not None
    for agreeing in (0, 3, 6):
        # The exact posterior of a uniform chance: Laplace's rule of succession.
        expected = 1 - (agreeing + 1) / 8
        found = model.unsupported(Signals(6, agreeing, 0, 0, 0.0, 0.5))
        assert found == pytest.approx(expected, abs=0.06)
    assert model.weights[0] < -1.0
    assert model.weights[1] == 0.0  # there were no neighbours


def test_too_few_claims_or_all_of_one_kind_make_no_fit() -> None:
    signals = Signals(4, 2, 0, 0, 0.3, 0.1)
    one = CheckedClaim(signals, True, "d")
    assert fit([one] * 20) is None
    assert fit([one] * 200) is None


def test_a_calibration_that_the_embedded_pair_ships_is_of_that_pair() -> None:
    directory = resolve_nla(EMBEDDED_AR)
    shipped = read_support(directory / "support.json")
    assert shipped.nla_id == json.loads((directory / "calibration.json").read_text())["nla_id"]
    assert ClaimType.THEME in shipped.models
    assert "support.json" in (directory / "SHA256SUMS").read_text()
