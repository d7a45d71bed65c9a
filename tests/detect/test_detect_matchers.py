import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz import fuzz

from nae_monitor.detect.matchers import (
    MAX_PATTERN_CHARS,
    FuzzyMatcher,
    KeywordMatcher,
    PatternError,
    RegexMatcher,
    compile_pattern,
)


def regex(*patterns: str, case: bool = False) -> RegexMatcher:
    return RegexMatcher(tuple(compile_pattern(pattern, case) for pattern in patterns))


@given(st.text(st.sampled_from("ab_ -1"), max_size=20), st.sampled_from(["a", "ab", "b1", "a b"]))
def test_whole_words_are_found_where_the_standard_library_finds_them(text: str, word: str) -> None:
    found = KeywordMatcher((word,), (), word=True).find(text)
    expected = re.search(rf"\b{re.escape(word)}\b", text)
    assert [(hit.start, hit.end) for hit in found] == ([expected.span()] if expected else [])


@given(
    st.text(st.sampled_from("abc"), max_size=12),
    st.text(st.sampled_from("abc"), min_size=1, max_size=3),
)
def test_parts_of_words_are_found_when_word_is_off(text: str, part: str) -> None:
    assert bool(KeywordMatcher((part,), (), word=False).find(text)) == (part in text)


@pytest.mark.parametrize(
    ("text", "found"), [("hidé", False), ("hid é", True), ("隠hid隠", True), ("hid_e", False)]
)
def test_word_bounds_know_letters_beyond_ascii(text: str, found: bool) -> None:
    assert bool(KeywordMatcher(("hid",), (), word=True).find(text)) is found


def test_keywords_that_end_in_signs_need_no_bound_there() -> None:
    assert KeywordMatcher(("c++",), (), word=True).find("in c++11 code")


def test_all_needs_every_word_and_any_needs_one() -> None:
    both = KeywordMatcher(("x", "y"), ("a", "b"), word=True)
    assert [(h.start, h.end) for h in both.find("b a y")] == [(2, 3), (0, 1), (4, 5)]
    assert both.find("b a") == []
    assert both.find("a x y") == []


@given(st.text(st.sampled_from("ab é."), max_size=20))
def test_patterns_match_where_the_standard_library_matches(text: str) -> None:
    found = regex("a+[^.]b").find(text)
    expected = re.search("a+[^.]b", text)
    assert [(h.start, h.end) for h in found] == ([expected.span()] if expected else [])


def test_letters_match_either_case_unless_case_is_on() -> None:
    assert regex("Hide").find("hide")
    assert not regex("Hide", case=True).find("hide")


@pytest.mark.parametrize(
    "pattern", [r"(?=a)b", r"(?!a)b", r"(?<=a)b", r"(a)\1", "(", "[", "a{5000}"]
)
def test_what_re2_cannot_take_is_nm201(pattern: str) -> None:
    with pytest.raises(PatternError) as caught:
        compile_pattern(pattern, False)
    assert caught.value.code == "NM201"


def test_look_around_is_answered_with_a_way_out() -> None:
    with pytest.raises(PatternError) as caught:
        compile_pattern("(?!a)b", False)
    assert "not" in caught.value.mend


@pytest.mark.parametrize("pattern", ["", "a*", "a?", r"\b", "^", "$", "(?:x|)", r"\B", "(a*)*"])
def test_patterns_that_match_nothing_at_all_are_nm202(pattern: str) -> None:
    with pytest.raises(PatternError) as caught:
        compile_pattern(pattern, False)
    assert caught.value.code == "NM202"


@pytest.mark.parametrize("pattern", ["a" * (MAX_PATTERN_CHARS + 1), "((((a{9}){9}){9}){9}){9}"])
def test_patterns_too_large_to_hold_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        compile_pattern(pattern, False)


@pytest.mark.parametrize("pattern", ["straße", "ﬁnd", "Ａ", "a\u200bb"])
def test_letters_that_normalised_text_never_holds_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match="never holds"):
        compile_pattern(pattern, False)


def test_decomposed_accents_in_a_pattern_are_composed() -> None:
    assert regex("e\u0301t").find("été")


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(x+x+)+y", r"^(\w+\s?)*$b"])
def test_patterns_that_hang_backtracking_engines_answer(pattern: str) -> None:
    text = "a" * 50_000 + "!" + "x" * 50_000  # a backtracking engine would take years
    assert regex(pattern).find(text) == []


@given(st.text(st.sampled_from("abcde "), min_size=6, max_size=40))
def test_fuzzy_agrees_with_the_plain_score(text: str) -> None:
    phrase = "bad cab"
    found = FuzzyMatcher((phrase,), 70, "partial_ratio").find(text)
    if len(text) >= len(phrase):
        score = fuzz.partial_ratio(phrase, text)
        assert bool(found) == (score >= 70)
        assert all(hit.score == pytest.approx(score, abs=0.01) for hit in found)


def test_fuzzy_points_to_the_misspelt_words() -> None:
    text = "log. the model is beeing tested by the operator"
    hit = FuzzyMatcher(("the model is being tested",), 88, "partial_ratio").find(text)[0]
    assert "model is beeing teste" in text[hit.start : hit.end]


@pytest.mark.parametrize("text", ["", "a", "the", "tested"])
def test_a_fragment_of_the_phrase_is_not_the_phrase(text: str) -> None:
    assert FuzzyMatcher(("the model is being tested",), 88, "partial_ratio").find(text) == []


@pytest.mark.parametrize("scorer", ["ratio", "token_sort_ratio", "token_set_ratio"])
def test_other_scorers_compare_the_whole_text(scorer: str) -> None:
    found = FuzzyMatcher(("hide the plan",), 95, scorer).find("hide the plan")  # type: ignore[arg-type]
    assert [(h.start, h.end, h.score) for h in found] == [(0, 13, 100.0)]
