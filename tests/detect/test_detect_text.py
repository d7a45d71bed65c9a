import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.detect.text import (
    _IGNORABLE,
    MAX_CLUSTER_CHARS,
    folded,
    is_word_edge,
    normalise,
    paragraphs,
    select_quotes,
    sentences,
)

# Texts rich in what makes normalisation hard: marks, Hangul letters, ligatures, invisible ones.
HARD = 'aAéßﬁǅİΐᾳΣσςᾴ각ᄀ각ㅎﾞｶ\u0301\u0345\u093c\u09be\u200b\u00ad\ufe0f\u115f“”" .\n語🏳️\u200d🌈'
hard_text = st.text(st.sampled_from(HARD), max_size=24)
any_text = st.text(max_size=40) | hard_text


def oracle(text: str, case: bool) -> str:
    """Normalisation of the whole string at once, as the module's docstring defines it."""
    kept = "".join(c for c in text if unicodedata.category(c) != "Cf" and not _IGNORABLE.match(c))
    composed = unicodedata.normalize("NFKC", kept)
    return composed if case else unicodedata.normalize("NFKC", composed.casefold())


def longest_mark_run(text: str) -> int:
    run = best = 0
    for c in unicodedata.normalize("NFKD", text):
        run = run + 1 if unicodedata.category(c)[0] == "M" or "\u1160" <= c <= "\u11ff" else 0
        best = max(best, run)
    return best


@given(any_text, st.booleans())
def test_pieces_normalise_to_the_same_text_as_the_whole(text: str, case: bool) -> None:
    if longest_mark_run(text) < MAX_CLUSTER_CHARS // 2:
        assert normalise(text, case=case).text == oracle(text, case)


def test_every_character_between_others_normalises_as_the_whole_does() -> None:
    for code in range(sys.maxunicode + 1):
        if 0xD800 <= code <= 0xDFFF:
            continue
        if code < 0x3400 or 0xA000 <= code < 0xAC10 or 0xD790 <= code < 0x13000 or code % 97 == 0:
            text = f"a{chr(code)}e{chr(code)}"
            assert normalise(text).text == oracle(text, False), hex(code)


@given(any_text, st.booleans())
def test_map_covers_every_character_within_bounds_and_in_order(text: str, case: bool) -> None:
    mapped = normalise(text, case=case)
    assert len(mapped.text) == len(mapped.starts) == len(mapped.ends)
    assert all(0 <= s < e <= len(text) for s, e in zip(mapped.starts, mapped.ends, strict=True))
    assert list(mapped.starts) == sorted(mapped.starts)
    assert list(mapped.ends) == sorted(mapped.ends)


@given(any_text, st.integers(0, 60), st.integers(0, 60))
def test_origin_of_a_stretch_normalises_to_text_that_holds_it(text: str, a: int, b: int) -> None:
    mapped = normalise(text)
    start, end = sorted((min(a, len(mapped.text)), min(b, len(mapped.text))))
    left, right = mapped.origin(start, end)
    assert 0 <= left <= right <= len(text)
    if start < end:
        assert mapped.text[start:end] in normalise(text[left:right]).text


def test_every_needle_spelt_in_disguise_is_found_at_its_place() -> None:
    for disguise in (
        "con\u200bceal",
        "ＣＯＮＣＥＡＬ",
        "con\u00adceal",
        "c\ufe0fonceal",
        "𝐜onceal",
    ):
        text = f"é “x” {disguise} it"
        mapped = normalise(text)
        place = mapped.text.index("conceal")
        start, end = mapped.origin(place, place + len("conceal"))
        assert text[start:end] == disguise


def test_lone_surrogates_become_replacement_characters() -> None:
    assert normalise("a\ud800b").text == "a\ufffdb"


def test_a_pile_of_accents_is_cut_into_bounded_clusters() -> None:
    mapped = normalise("a" + "\u0301\u0323" * 50_000)
    assert max(e - s for s, e in zip(mapped.starts, mapped.ends, strict=True)) <= MAX_CLUSTER_CHARS


@given(st.text(st.sampled_from('ab "“”«»\n'), max_size=30))
def test_quoted_and_unquoted_parts_share_the_text_between_them(text: str) -> None:
    whole = normalise(text)
    inside = select_quotes(whole, "only").text.replace("\n", "")
    outside = select_quotes(whole, "outside").text
    assert sorted(inside + outside.replace("\n", "")) == sorted(text.replace("\n", ""))


@pytest.mark.parametrize(
    ("text", "outside", "only"),
    [
        ('theme; "last words"; expects "next"', 'theme; ""; expects ""', "last words\nnext"),
        ("say “hide” now", "say “” now", "hide"),
        ("it's not 'quoted' here", "it's not 'quoted' here", ""),
        ('never "closed here', 'never "', "closed here"),
        ('one "open\n\nnext paragraph', 'one "\n\nnext paragraph', "open"),
    ],
)
def test_quotes_select_what_stands_in_or_out_of_them(text: str, outside: str, only: str) -> None:
    assert select_quotes(normalise(text), "outside").text == outside
    assert select_quotes(normalise(text), "only").text == only


@given(any_text, st.sampled_from(["outside", "only"]))
def test_quote_views_keep_their_map_in_bounds(text: str, quotes: str) -> None:
    view = select_quotes(normalise(text), quotes)  # type: ignore[arg-type]
    assert len(view.text) == len(view.starts) == len(view.ends)
    assert all(0 <= p <= len(text) for p in (*view.starts, *view.ends))


@given(st.text(st.sampled_from('ab .!?;\n"语。'), max_size=40))
def test_sentences_are_disjoint_and_in_order(text: str) -> None:
    found = sentences(text)
    edges = [edge for stretch in found for edge in stretch]
    assert edges == sorted(edges)
    assert all(0 <= start < end <= len(text) for start, end in found)


def test_clauses_of_an_embedded_explanation_come_apart() -> None:
    text = 'harmful request, violence; ""; expects ""'
    assert [text[a:b] for a, b in sentences(text)] == ["harmful request, violence", 'expects ""']


def test_text_without_letters_has_no_sentence() -> None:
    assert sentences("... !! ;; ") == []


def test_paragraphs_leave_blank_lines_out() -> None:
    text = "one\ntwo\n \n\n three \n\n"
    assert [text[a:b] for a, b in paragraphs(text)] == ["one\ntwo", "three "]


@pytest.mark.parametrize(
    ("text", "place", "edge"),
    [
        ("hide", 0, True),
        ("hide", 2, False),
        ("a hide", 2, True),
        ("hidé", 3, False),
        ("hid\u0301", 3, False),
        ("snake_hide", 6, False),
        ("语hide", 1, True),
        ("语言", 1, True),
        ("naïve2", 5, False),
        ("über-hide", 4, True),
    ],
)
def test_word_edges_follow_the_letters_of_every_script(text: str, place: int, edge: bool) -> None:
    assert is_word_edge(text, place) is edge


def test_pathological_punctuation_is_split_in_one_pass() -> None:
    assert sentences("." * 200_000 + "a") == [(0, 200_001)]
    assert len(paragraphs("\n " * 100_000 + "x")) == 1


def test_folding_an_ignorable_text_leaves_nothing() -> None:
    assert folded("\u200b\u00ad\ufeff") == ""
