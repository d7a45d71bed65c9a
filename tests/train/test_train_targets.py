from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tiny_trainer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nae_monitor.decode.prompts import parse_explanation
from nae_monitor.train.av import CLOSE, OPEN
from nae_monitor.train.targets import make_target, readable, special_words

TOKENIZER = tiny_trainer.build_tokenizer()
WORDS = special_words(TOKENIZER)
SPELLED = [text for text, _ in WORDS.values()]
hostile = st.lists(
    st.one_of(
        st.sampled_from(['"', "\n", "\r", "\u2028", "\ufffd", OPEN, CLOSE, "'; expects", *SPELLED]),
        st.sampled_from(["<|im_", "end|>", "<", "/explanation>", "|>"]),
        st.text(max_size=4),
    ),
    max_size=8,
).map("".join)
ids = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=16)


def check(text: str) -> None:
    assert '"' not in text
    assert len(text.splitlines()) <= 1
    assert "\ufffd" not in text
    assert not any(spelled in text for spelled in (*SPELLED, OPEN, CLOSE))
    again = TOKENIZER(text, add_special_tokens=False).input_ids
    assert not set(again) & set(WORDS)


@settings(max_examples=300)
@given(ids)
def test_any_tokens_become_one_line_without_quotes_or_special_tokens(ids: list[int]) -> None:
    check(readable(TOKENIZER, WORDS, ids))


@settings(max_examples=300)
@given(hostile)
def test_ordinary_tokens_that_spell_special_ones_are_made_harmless(text: str) -> None:
    pieces = [TOKENIZER(c, add_special_tokens=False).input_ids for c in text]
    check(readable(TOKENIZER, WORDS, [i for piece in pieces for i in piece]))


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P"), exclude_characters='"<>')))
def test_plain_words_are_kept_as_they_are(text: str) -> None:
    assert readable(TOKENIZER, WORDS, TOKENIZER(text).input_ids) == text


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(ids, ids, ids)
def test_a_target_keeps_its_form_and_survives_its_tags(
    last: list[int], following: list[int], reply: list[int]
) -> None:
    target = make_target(
        TOKENIZER,
        WORDS,
        theme="ordinary chat",
        last_ids=last or [5],
        next_ids=following,
        reply_ids=reply,
    )
    assert re.fullmatch(
        r'at "[^"]*"; expects "[^"]*"; after "[^"]*"; ordinary chat(, reply( refuses)?)?',
        target.text,
    )
    assert parse_explanation(f"{OPEN}{target.text}{CLOSE}") == (target.text, True)


def test_template_tokens_become_words() -> None:
    ids = TOKENIZER('<|im_end|>\n<|im_start|>user say "hi"<file_sep>').input_ids
    assert readable(TOKENIZER, WORDS, ids) == "[end]\\n[start]user say 'hi'[special]"


@pytest.mark.parametrize(
    ("reply", "theme"),
    [
        ("", "ordinary chat"),
        ("Sure, here", "ordinary chat, reply"),
        ("I'm sorry, but", "ordinary chat, reply refuses"),
    ],
)
def test_the_theme_says_whether_the_reply_refuses(reply: str, theme: str, tokenizer: Any) -> None:
    target = make_target(
        tokenizer,
        WORDS,
        theme="ordinary chat",
        last_ids=np.array([70, 71]).tolist(),
        next_ids=[72],
        reply_ids=tokenizer(reply).input_ids if reply else [],
    )
    assert target.theme == theme
