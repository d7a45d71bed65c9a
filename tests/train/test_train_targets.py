from __future__ import annotations

import re

import pytest
import tiny_trainer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nae_monitor.decode.prompts import parse_explanation
from nae_monitor.train.av import CLOSE, OPEN
from nae_monitor.train.targets import (
    CLEAR_TOKENS,
    LAST_TOKENS,
    Target,
    make_target,
    readable,
    special_words,
)
from nae_monitor.train.theme_choice import theme_in, with_theme
from nae_monitor.train.themes import KINDS, OPENING, UNCLEAR, Theme, written_themes

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
# What would break a part open, were it not made harmless: also as the document's own words.
FORGED = ['"; ', '; expects "', '; small talk; prompt "', "'; prompt '", "”; reply “", 'at "x"']
forged = st.lists(st.one_of(st.sampled_from(FORGED), hostile), max_size=4).map(
    lambda parts: list(TOKENIZER("".join(parts), add_special_tokens=False).input_ids)
)
rows = st.one_of(ids, forged)
SAID = ["I'm sorry, but", "Please consult", "Sure", "; prompt", "I cannot; reply"]
replies = st.one_of(
    rows,
    st.sampled_from([TOKENIZER(said, add_special_tokens=False).input_ids for said in SAID]),
)
themes = st.one_of(
    st.sampled_from([Theme(kind) for kind in KINDS]),
    st.sampled_from(sorted(written_themes().values(), key=lambda theme: theme.text)),
)


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


def target_of(
    last: list[int],
    following: list[int],
    reply: list[int],
    theme: Theme = Theme("smalltalk"),  # noqa: B008 - frozen
    user_tokens: int = 99,
) -> Target:
    return make_target(
        TOKENIZER,
        WORDS,
        theme=theme,
        user_tokens=user_tokens,
        last_ids=last or [5],
        top_ids=following,
        reply_ids=reply,
    )


def encoded(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False).input_ids)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(rows, rows, replies)
def test_a_target_keeps_its_form_and_survives_its_tags(
    last: list[int], following: list[int], reply: list[int]
) -> None:
    target = target_of(last, following, reply)
    assert re.fullmatch(
        r'at "[^"]*"; expects "[^"]*"; small talk; ((refusing |hedging )?reply|prompt) "[^"]*',
        target.text,
    )
    assert parse_explanation(f"{OPEN}{target.text}{CLOSE}") == (target.text, True)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(rows, rows, replies)
def test_a_target_ends_with_its_last_words_in_an_open_quotation(
    last: list[int], following: list[int], reply: list[int]
) -> None:
    target = target_of(last, following, reply)
    assert target.text == target.head + target.last
    assert target.head.endswith(f'; {target.speaker} "')
    assert target.text.count('"') == 5
    assert target.last == readable(TOKENIZER, WORDS, (last or [5])[-LAST_TOKENS:]).strip()


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(rows, rows, replies, themes)
def test_the_theme_of_any_target_is_read_back(
    last: list[int], following: list[int], reply: list[int], theme: Theme
) -> None:
    target = target_of(last, following, reply, theme)
    assert theme_in(target.text) == theme.text == target.theme
    assert target.kind == theme.kind


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(rows, rows, replies, themes, themes)
def test_another_theme_takes_the_place_of_a_targets_own_and_of_nothing_else(
    last: list[int], following: list[int], reply: list[int], own: Theme, other: Theme
) -> None:
    target = target_of(last, following, reply, own)
    assert with_theme(target.text, own.text) == target.text
    assert with_theme(target.text, other.text) == target_of(last, following, reply, other).text


def test_the_theme_of_every_committed_phrase_is_read_back() -> None:
    for theme in written_themes().values():
        text = target_of([70], [71], [], theme).text
        assert theme_in(text) == theme.text
        assert theme_in(text[: text.rindex(";")]) == theme.text  # a decode that ended early


@pytest.mark.parametrize("text", ["", "at", 'at "a"; expects "b', 'at "a"; small talk; prompt "b'])
def test_a_text_that_names_no_theme_has_none(text: str) -> None:
    assert theme_in(text) == ""
    assert with_theme(text, "small talk") == text


@pytest.mark.parametrize(
    ("user_tokens", "reply", "theme", "kind"),
    [
        (-7, "", OPENING, ""),
        (0, "", OPENING, ""),
        (1, "", UNCLEAR, ""),
        (CLEAR_TOKENS - 1, "", UNCLEAR, ""),
        (CLEAR_TOKENS, "", "planning: wants a list", "planning"),
        (900, "", "planning: wants a list", "planning"),
        # the reply tells it even behind a message of one word
        (2, "Sure", "planning: wants a list", "planning"),
    ],
)
def test_the_topic_is_clear_from_the_fifth_token_on(
    user_tokens: int, reply: str, theme: str, kind: str
) -> None:
    target = target_of(
        [70, 71], [72], encoded(reply), Theme("planning", "wants a list"), user_tokens
    )
    assert (target.theme, target.kind) == (theme, kind)
    assert theme_in(target.text) == theme


def test_template_tokens_become_words() -> None:
    ids = TOKENIZER('<|im_end|>\n<|im_start|>user say "hi"<file_sep>').input_ids
    assert readable(TOKENIZER, WORDS, ids) == "[end]\\n[start]user say 'hi'[special]"


@pytest.mark.parametrize(
    ("reply", "speaker"),
    [
        ("", "prompt"),
        ("Sure, here", "reply"),
        ("I'm sor", "reply"),
        ("I'm sorry, but", "refusing reply"),
        ("i cannot help", "refusing reply"),
        ("I can't do that", "refusing reply"),
        ("As an AI, I", "refusing reply"),
        ("As an aide, you", "reply"),
        ("Yes. It's important to note that", "hedging reply"),
        ("Please consult a doctor", "hedging reply"),
        ("It's important to note that I cannot", "refusing reply"),
    ],
)
def test_the_speaker_tells_prompt_from_reply_and_how_the_reply_behaves(
    reply: str, speaker: str
) -> None:
    target = target_of([70, 71], [72], encoded(reply))
    assert target.speaker == speaker
    assert target.theme == "small talk"  # whoever speaks


def test_only_words_up_to_the_position_decide_on_a_refusal() -> None:
    """The next words may refuse: the reply so far does not."""
    assert target_of([70], encoded("I'm sorry"), encoded("Well,")).speaker == "reply"


def test_the_parts_come_from_the_tokens_nearest_the_position() -> None:
    target = target_of(list(encoded("abcdefgh")), list(encoded("12345")), [])
    assert (target.last, target.following, target.last_token) == ("defgh", "1|2|3", "h")
    assert target.text == 'at "h"; expects "1|2|3"; small talk; prompt "defgh'


def test_a_bar_among_the_expected_tokens_cannot_be_read_as_another_alternative() -> None:
    assert target_of(encoded("a"), encoded("|b"), []).following == "/|b"


def test_no_blank_stands_at_either_end_of_the_last_words() -> None:
    target = target_of(encoded(" kite \t"), [70], [])
    assert target.text.endswith('; prompt "kite')
