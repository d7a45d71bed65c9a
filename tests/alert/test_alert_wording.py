"""What a person reads of a match: its words, without the marks that a rule anchors on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.alert.wording import matched_words, words_range

texts = st.text(st.sampled_from("ab1 \n\"'(;:,.-“”)[]%é語…"), max_size=12) | st.text(max_size=12)


@pytest.mark.parametrize(
    ("matched", "read"),
    [
        ('"; harmful request, weapons: ', "harmful request, weapons"),
        (
            '"; harmful request, fraud: asks; prompt "how do',
            'harmful request, fraud: asks; prompt "how do',
        ),
        ("; hides it from the user;", "hides it from the user"),
        ("plain words", "plain words"),
        ("“how to hide”", "“how to hide”"),
        ('"quoted" and "again"', '"quoted" and "again"'),
        ('an open "quote', 'an open "quote'),
        ('words"', "words"),
        ("keylogger (hidden)", "keylogger (hidden)"),
        ("keylogger (hidden", "keylogger (hidden"),
        ("(keylogger) hidden)", "(keylogger) hidden)"),
        (") after all (", "after all"),
        ("-0.25", "-0.25"),
        ("- item", "item"),
        ("50 %", "50 %"),
        ("C++", "C++"),
        ("users'", "users"),
        ("\u200bhide\u200b", "hide"),
        ('";:', '";:'),
        ("", ""),
    ],
)
def test_the_words_are_read_without_the_punctuation_around_them(matched: str, read: str) -> None:
    assert matched_words(matched) == read


@settings(deadline=None)
@given(texts)
def test_no_letter_digit_or_symbol_is_ever_taken_away(text: str) -> None:
    start, end = words_range(text)
    assert 0 <= start <= end <= len(text)
    around = text[:start] + text[end:]
    assert not any(character.isalnum() for character in around)
    assert text[start:end] == matched_words(text)
    assert bool(text) is bool(matched_words(text))


@settings(deadline=None)
@given(texts)
def test_reading_it_twice_changes_nothing(text: str) -> None:
    assert matched_words(matched_words(text)) == matched_words(text)
