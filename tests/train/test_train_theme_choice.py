from __future__ import annotations

import numpy as np
import pytest
from tiny_trainer import WordEncoder

from nae_monitor.models import load_encoder
from nae_monitor.train.targets import Target
from nae_monitor.train.theme_choice import chosen_kinds, kind_right, unclear_said
from nae_monitor.train.themes import KINDS, OPENING, UNCLEAR, Theme, written_themes


def text(theme: str) -> str:
    return f'at "a"; expects "b"; {theme}; prompt "a'


def target(kind: str) -> Target:
    return Target(kind, KINDS[kind].label, "prompt", "a", "b", "a")


def test_a_kinds_own_label_and_description_lead_to_it() -> None:
    said = [f"{kind.label}: {kind.description}" for kind in KINDS.values()]
    assert chosen_kinds(WordEncoder(), said) == list(KINDS)


def test_the_choice_of_one_theme_does_not_depend_on_the_others() -> None:
    said = [Theme(kind, "asks for something plain").text for kind in KINDS]
    together = chosen_kinds(WordEncoder(), said)
    assert together == [chosen_kinds(WordEncoder(), [one])[0] for one in said]


def test_an_empty_theme_is_of_no_kind_wherever_it_stands() -> None:
    assert chosen_kinds(WordEncoder(), ["", "small talk", ""]) == ["", "smalltalk", ""]


def test_only_a_text_whose_theme_leads_to_the_targets_kind_is_right() -> None:
    cases = [
        ("weapons", text("harmful request, weapons: asks how to make a bomb"), 1.0),
        ("weapons", text("small talk: greets and chats about the day"), 0.0),
        ("smalltalk", text("small talk"), 1.0),
        ("smalltalk", 'at "small"; expects " talk', 0.0),  # ended before its theme
        ("smalltalk", "", 0.0),
    ]
    kinds, texts, expected = zip(*cases, strict=True)
    found = kind_right(WordEncoder(), [target(kind) for kind in kinds], texts)
    assert found.tolist() == list(expected)


def test_quotations_do_not_count_as_the_theme() -> None:
    quoted = 'at "bomb"; expects "weapons gun poison"; small talk; prompt "a bomb gun poison weapon'
    assert kind_right(WordEncoder(), [target("smalltalk")], [quoted]).tolist() == [1.0]


def test_unclear_is_said_only_in_exactly_these_words() -> None:
    texts = [text(UNCLEAR), text(OPENING), text("small talk"), text(UNCLEAR + ": x"), UNCLEAR, ""]
    assert unclear_said(texts).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.live
def test_the_embedded_encoder_tells_most_written_themes_and_every_label_apart() -> None:
    encoder = load_encoder("embedded/all-minilm-l6-v2")
    assert chosen_kinds(encoder, [kind.label for kind in KINDS.values()]) == list(KINDS)
    drawn = list(written_themes().values())[::40]
    chosen = chosen_kinds(encoder, [theme.text for theme in drawn])
    right = [kind == theme.kind for kind, theme in zip(chosen, drawn, strict=True)]
    assert np.mean(right) > 0.8
