"""The compiled matchers against the selections' own, on random rules and texts."""

import random
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rapidfuzz import fuzz

from nae_monitor.detect.conditions import Name
from nae_monitor.detect.matchers import (
    FuzzyMatcher,
    KeywordMatcher,
    PatternError,
    RegexMatcher,
    TextMatcher,
    compile_pattern,
    fuzzy_hit,
)
from nae_monitor.detect.matching import (
    TextMatchers,
    blocks,
    compiled,
    literals,
    patterns,
    phrases,
)
from nae_monitor.detect.matching.literals import Literal, LiteralIndex, OverBudgetError
from nae_monitor.detect.matching.patterns import PatternSet, PatternSetError
from nae_monitor.detect.matching.phrases import SHARE, Phrase, PhraseIndex, most_lost
from nae_monitor.detect.schema import Rule, Selection
from nae_monitor.detect.text import normalise, word_shadow
from nae_monitor.detect.views import Hit, Missing, Subject, View, Views
from nae_monitor.health import CIRCUIT_LIMIT, Health
from nae_monitor.records import Severity

LETTERS = "abc é隠_ -.1\u0301😀"
texts = st.text(st.sampled_from(LETTERS), max_size=60)
words = st.text(st.sampled_from(LETTERS), min_size=1, max_size=4).filter(str.strip)
PATTERNS = (
    r"\ba\b",
    r"a+[^.]b",
    r"\b\w{2}\b",
    r"(?:ab|ba)c?\b",
    r"\Bb",
    r"é+b?",
    r"\bé\b",
    r"\pL\d",
    r"[[:alpha:]]{3}",
    r"\x{9690}",
    r"^a",
    r"c$",
    r"(a+)+$",
    r".{3}b",
)
COMPILED = {source: compile_pattern(source, False) for source in PATTERNS}
keyword_matchers = st.builds(
    KeywordMatcher,
    st.lists(words, max_size=3).map(tuple),
    st.lists(words, max_size=2).map(tuple),
    st.booleans(),
).filter(lambda matcher: bool(matcher.any_of or matcher.all_of))
regex_matchers = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3).map(
    lambda sources: RegexMatcher(tuple(COMPILED[source] for source in sources))
)
fuzzy_matchers = st.builds(
    FuzzyMatcher,
    st.lists(st.text(st.sampled_from("abc é"), min_size=1, max_size=9), min_size=1, max_size=3).map(
        tuple
    ),
    st.integers(30, 100).map(float),
    st.sampled_from(["partial_ratio", "token_set_ratio"]),
    st.just(True),
)
matchers = keyword_matchers | regex_matchers | fuzzy_matchers


def rule(number: int, *found: TextMatcher, **look: Any) -> Rule:
    selections = {
        f"s{place}": Selection(
            f"s{place}",
            look.get("field", "explanation"),
            look.get("quotes", "any"),
            look.get("case", False),
            matcher,
        )
        for place, matcher in enumerate(found)
    }
    return Rule(
        id=f"rule-{number}",
        name=f"r{number}",
        title="",
        version="1",
        severity=Severity.LOW,
        selections=MappingProxyType(selections),
        condition=Name("s0"),
        file="",
        canonical={},
    )


def view_of(text: str) -> View:
    view = Views(Subject("x", text, "", "", {})).view("prompt", "any", False)
    assert not isinstance(view, Missing)
    return view


def answers(
    rules: Iterable[Rule], text: str, health: Health | None = None
) -> dict[tuple[str, str], tuple[list[Hit], str]]:
    rules = list(rules)
    ask = TextMatchers(rules, health or Health())
    return {(r.id, n): ask(r, s, view_of(text)) for r in rules for n, s in r.selections.items()}


@given(st.lists(matchers, min_size=1, max_size=8), texts)
@settings(max_examples=60)
def test_compiled_selections_answer_as_their_own_matchers_do(
    found: list[TextMatcher], text: str
) -> None:
    rules = [rule(number, *found[number::2]) for number in range(2)]
    health = Health()
    for (rule_id, name), (hits, why) in answers(rules, text, health).items():
        selection = rules[int(rule_id[-1])].selections[name]
        assert isinstance(selection.matcher, KeywordMatcher | RegexMatcher | FuzzyMatcher)
        assert (hits, why) == (selection.matcher.find(view_of(text).text), "")
    assert health.counters() == {}


@given(st.lists(words, min_size=1, max_size=12), texts, st.booleans())
def test_literals_are_found_where_a_plain_search_finds_them_first(
    found: list[str], text: str, word: bool
) -> None:
    hits = LiteralIndex(Literal(w, word) for w in found).find(text)
    for literal in found:
        (plain,) = KeywordMatcher((literal,), (), word).find(text) or [None]
        assert hits.get(Literal(literal, word)) == plain


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (r"\bhid\b", "hidé", False),
        (r"\bhid\b", "éhid", False),
        (r"\bhid\b", "hid\u0301", False),
        (r"\bhid\b", "é hid é", True),
        (r"\bhide\b", "隠hide隠", True),
        (r"\bna\w+e\b", "naïve", True),
        (r"\b\w{5}\b", "naïve", True),
        (r"hid\W", "hidé", False),
        (r"hid\W", "hid—", True),
        (r"na.ve", "naïve", True),
        (r"na[^.]ve", "naïve", True),
        (r"na\pLve", "naïve", True),
        (r"naïve", "naïve", True),
    ],
)
def test_word_bounds_of_patterns_know_letters_beyond_ascii(
    pattern: str, text: str, matches: bool
) -> None:
    matcher = RegexMatcher((compile_pattern(pattern, False),))
    text = normalise(text).text
    assert bool(matcher.find(text)) is matches
    ((hits, _),) = answers([rule(0, matcher)], text).values()
    assert hits == matcher.find(text)


@given(st.text(max_size=40) | texts)
def test_a_shadow_keeps_length_ascii_and_the_bounds_of_words(text: str) -> None:
    shadow = word_shadow(text)
    assert len(shadow) == len(text)
    assert all(s == t for s, t in zip(shadow, text, strict=True) if t.isascii() or s != "_")


@given(st.lists(st.sampled_from(PATTERNS), max_size=8, unique=True), texts)
def test_a_pattern_set_names_the_patterns_that_match_alone(found: list[str], text: str) -> None:
    alone = [n for n, p in enumerate(found) if COMPILED[p].search(text)]
    assert PatternSet(found, case=False).find(text) == alone


def test_patterns_that_do_not_fit_together_are_set_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "BASE_BYTES", 60_000)
    monkeypatch.setattr(patterns, "BYTES_PER_PATTERN", 0)
    many = [rf"\bw{number}\w{{1,40}}x\b" for number in range(12)]
    apart = PatternSet(many, case=True)
    assert len(apart._sets) > 1
    assert [n for n in apart.find("a w7abcx b") if n not in apart.left_out] in ([7], [])
    assert 7 in apart.find("a w7abcx b")


def test_a_pattern_too_large_for_any_set_is_always_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patterns, "BASE_BYTES", 10_000)
    monkeypatch.setattr(patterns, "BYTES_PER_PATTERN", 0)
    large = r"\b(?:\w{1,9} ){1,9}end\b"
    assert PatternSet(["ab", large], case=True).left_out == [1]
    matcher = RegexMatcher((compile_pattern("ab", False), compile_pattern(large, False)))
    ((hits, why),) = answers([rule(0, matcher)], "ab to the end").values()
    assert (hits, why) == (matcher.find("ab to the end"), "")


class Silent:
    """A set that RE2 gave up on: no pattern in its answer, the canary neither."""

    def Match(self, text: bytes) -> None:  # noqa: N802 - RE2's name
        return None


def test_a_set_without_its_canary_is_a_failure_and_not_a_miss() -> None:
    broken = PatternSet(["a"], case=True)
    broken._sets = [(Silent(), [0])]
    with pytest.raises(PatternSetError):
        broken.find("b")


def test_where_a_set_fails_patterns_are_searched_one_by_one_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patterns, "_compiled", lambda found, case: Silent())
    rules = [rule(0, RegexMatcher((compile_pattern("hide", False),)))]
    health = Health()
    ask = TextMatchers(rules, health)
    for number in range(CIRCUIT_LIMIT + 2):
        selection = rules[0].selections["s0"]
        hits, why = ask(rules[0], selection, view_of(f"{number} hide"))
        assert ([(h.start, h.end) for h in hits], why) == ([(2, 6)], "")
    counted = health.counters()
    assert counted["failed.detect.patterns.PatternSetError"] == CIRCUIT_LIMIT
    assert counted[compiled.ALONE_COUNTER] == CIRCUIT_LIMIT + 2


def test_a_text_full_of_nested_words_is_unknown_and_never_a_miss() -> None:
    nested = KeywordMatcher(tuple("a" * k for k in range(1, 200)), ("zebra",), word=True)
    health = Health()
    rules = [rule(0, nested), rule(1, KeywordMatcher(("zebra",), (), word=True))]
    found = answers(rules, "a" * 50_000 + " zebra", health)
    assert {why for _, why in found.values()} == {"the text holds too many of the words"}
    assert health.counters() == {compiled.UNKNOWN_COUNTER: 1}


def test_the_budget_leaves_ordinary_texts_alone() -> None:
    text = "the the " * 25_000
    index = LiteralIndex([Literal("the", True), Literal("the", False), Literal("he", False)])
    assert len(index.find(text)) == 3
    assert 2 * text.count("the") > literals.MIN_HITS
    with pytest.raises(OverBudgetError):
        LiteralIndex(Literal("a" * k, False) for k in range(1, 99)).find("a" * 9_999)


@given(
    st.sets(st.text(st.sampled_from("ab"), min_size=1, max_size=9), min_size=1, max_size=8),
    st.text(st.sampled_from("ab"), max_size=40),
    st.integers(1, 12),
)
def test_literals_are_found_where_they_first_stand_however_a_text_is_cut_up(
    words: set[str], text: str, piece_chars: int
) -> None:
    index = LiteralIndex(Literal(word, False) for word in words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(literals, "PIECE_CHARS", piece_chars)
        found = index.find(text)
    expected = {word: text.find(word) for word in words if word in text}
    assert {literal.text: (hit.start, hit.end) for literal, hit in found.items()} == {
        word: (start, start + len(word)) for word, start in expected.items()
    }


def test_a_text_is_matched_once_for_all_its_selections(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    plain = LiteralIndex.find
    monkeypatch.setattr(LiteralIndex, "find", lambda i, t: seen.append(t) or plain(i, t))
    rules = [rule(n, KeywordMatcher((f"w{n}",), (), True)) for n in range(20)]
    ask = TextMatchers(rules, Health())
    for text in ("w3 w4", "none", "w3 w4"):
        for each in rules:
            ask(each, each.selections["s0"], view_of(text))
    assert seen == ["w3 w4", "none"]


def test_selections_of_rules_it_was_not_compiled_for_ask_their_matcher() -> None:
    other = rule(5, KeywordMatcher(("hide",), (), True))
    hits, _ = TextMatchers([], Health())(other, other.selections["s0"], view_of("they hide"))
    assert [(h.start, h.end) for h in hits] == [(5, 9)]


FEW = st.sampled_from([0, phrases.FEW_PHRASES])  # 0: every index counts twice, however small


@contextmanager
def few_phrases(count: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phrases, "FEW_PHRASES", count)
        yield


@given(
    st.lists(st.text(st.sampled_from("abcd "), min_size=1, max_size=14), min_size=1, max_size=6),
    st.text(st.sampled_from("abcd "), max_size=50),
    st.floats(1, 100),
    FEW,
)
def test_an_exact_index_lets_every_phrase_through_that_reaches_its_score(
    found: list[str], text: str, score: float, few: int
) -> None:
    with few_phrases(few):
        kept = PhraseIndex([Phrase(p, score, True) for p in found]).candidates(text)
    for number, phrase in enumerate(found):
        if fuzzy_hit(phrase, text, score, "partial_ratio") is not None:
            assert number in kept


@given(
    st.lists(st.text(st.sampled_from("abc "), min_size=3, max_size=14), min_size=1, max_size=6),
    st.lists(st.text(st.sampled_from("abcd "), max_size=60), max_size=40).map("".join),
    st.floats(40, 100),
    FEW,
)
@example([" a a "], "aa", 40.0, 0)  # a text shorter than the phrase is compared whole
def test_a_phrase_scores_at_least_as_high_where_the_index_places_it(
    found: list[str], text: str, score: float, few: int
) -> None:
    with few_phrases(few):
        places = PhraseIndex([Phrase(p, score, True) for p in found]).places(text)
    assert [number for number, _, _ in places] == sorted({number for number, _, _ in places})
    placed = {number: text[start:end] for number, start, end in places}
    for number, phrase in enumerate(found):
        hit = fuzzy_hit(phrase, text, score, "partial_ratio")
        if hit is not None:
            there = fuzzy_hit(phrase, placed[number], score, "partial_ratio")
            assert there is not None
            assert there.score >= hit.score - 0.01


def test_a_planted_phrase_is_placed_near_where_it_stands() -> None:
    phrase = "plans to hide its reasoning"
    text = "qwertz uiop " * 200 + phrase + " qwertz uiop" * 200
    [(_, start, end)] = PhraseIndex([Phrase(phrase, 88.0, False)]).places(text)
    assert phrase in text[start:end]
    assert end - start < 400


@given(st.integers(1, 500), st.floats(1, 100))
def test_a_perfect_score_may_lack_nothing_and_lower_ones_more(length: int, score: float) -> None:
    assert most_lost(length, 100) == 0
    assert most_lost(length, score) >= most_lost(length, min(score + 5, 100.0))


def edited(phrase: str, edits: int, chance: random.Random) -> str:
    found = list(phrase)
    for _ in range(edits):
        place = chance.randrange(len(found))
        match chance.randrange(4):
            case 0:
                found[place] = chance.choice("etaoin")
            case 1:
                del found[place]
            case 2:
                found.insert(place, chance.choice("etaoin"))
            case _ if place:
                found[place - 1], found[place] = found[place], found[place - 1]
    return "".join(found)


@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 60), min_size=1, max_size=40), st.integers(0, 40)),
        min_size=1,
        max_size=9,
    ),
    st.lists(st.integers(0, 60), min_size=1, max_size=150),
    st.integers(1, 30),
    st.integers(0, 30),
    st.integers(1, 3),
)
def test_a_block_is_held_where_a_plain_count_finds_enough(
    wanted: list[tuple[set[int], int]], text: list[int], stride: int, reach: int, words: int
) -> None:
    sets = blocks.Phrases([np.array(sorted(c)) for c, _ in wanted], [n for _, n in wanted])
    held = sets.held(np.array(text), stride, reach, words).view(np.uint8)
    assert set(np.unique(held)) <= {0, 128}
    for (codes, needed), row in zip(wanted, held, strict=True):
        for block, byte in enumerate(row):
            start, end = block * stride, block * stride + stride + reach
            cells = slice(start // blocks.CELL_CHARS * blocks.CELL_CHARS, end + blocks.CELL_CHARS)
            if len(codes.intersection(text[start:end])) >= needed:
                assert byte
            if byte:
                assert len(codes.intersection(text[cells])) >= needed


@given(st.data())
def test_some_of_the_phrases_are_held_where_all_of_them_are(data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.sets(st.integers(0, 20), min_size=1), min_size=1, max_size=6))
    rows = data.draw(st.lists(st.integers(0, len(wanted) - 1), min_size=1, unique=True))
    text = np.array(data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=80)))
    sets = blocks.Phrases([np.array(sorted(c)) for c in wanted], [len(c) // 2 for c in wanted])
    some = sets.only(np.array(sorted(rows))).held(text, 5, 9)
    assert np.array_equal(some, sets.held(text, 5, 9)[sorted(rows)])


@pytest.mark.parametrize("few", [0, phrases.FEW_PHRASES])
def test_the_plain_share_keeps_planted_phrases_with_edits(few: int) -> None:
    with few_phrases(few):
        check_planted_phrases_are_kept()


def check_planted_phrases_are_kept() -> None:
    chance = random.Random(5)
    vocabulary = ["model", "plans", "to", "hide", "its", "reasoning", "from", "operator", "test"]
    kept = true = 0
    for _ in range(1_500):
        phrase = " ".join(chance.choices(vocabulary, k=chance.randint(3, 6)))
        text = "log of it. " + edited(phrase, chance.randint(0, 4), chance) + " and so on"
        if fuzz.partial_ratio(phrase, text) >= 85:
            true += 1
            kept += bool(PhraseIndex([Phrase(phrase, 85.0, False)]).candidates(text))
    assert true > 500
    assert kept / true >= 0.999
    assert SHARE == 0.5


@pytest.mark.parametrize("few", [0, phrases.FEW_PHRASES])
def test_a_long_text_is_looked_at_in_stretches_and_no_phrase_falls_between_them(few: int) -> None:
    with few_phrases(few):
        check_no_phrase_falls_between_stretches()


def check_no_phrase_falls_between_stretches() -> None:
    phrase = "plans to hide its reasoning"
    index = PhraseIndex([Phrase(phrase, 88.0, False)])
    filler = "qwertz uiop "
    for offset in (*range(0, 300, 31), *range(900, 1_130, 7)):
        text = (filler * 400)[:offset] + phrase + filler * 300
        assert index.candidates(text) == [0]
    scattered = " ".join(f"{phrase[n : n + 3]}{'x' * 300}" for n in range(len(phrase)))
    assert index.candidates(scattered) == []


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(x+x+)+y", r"^(\w+\s?)*$b", r"(?:a?){60}a{60}"])
def test_hostile_patterns_answer_on_long_texts(pattern: str) -> None:
    matcher = RegexMatcher((compile_pattern(pattern, False),))
    text = "a" * 30_000 + "!é" + "x" * 30_000
    ((hits, why),) = answers([rule(0, matcher)], text).values()
    assert (hits, why) == (matcher.find(text), "")


@pytest.mark.parametrize(
    "text", ["a" * 10_000_000, "ab \u0301é" * 2_000_000], ids=["ascii", "beyond"]
)
def test_ten_megabytes_are_answered(text: str) -> None:
    found = rule(
        0,
        KeywordMatcher(("b", "a a"), (), True),
        RegexMatcher((compile_pattern(r"\bx\w{1,20}y\b", False),)),
        FuzzyMatcher(("plans to hide its reasoning",), 88.0, "partial_ratio"),
    )
    assert all(isinstance(hits, list) for hits, _ in answers([found], text).values())


@given(st.text(max_size=30))
def test_any_pattern_compiles_or_says_why_not(pattern: str) -> None:
    try:
        found = compile_pattern(pattern, False)
    except PatternError as error:
        code: str | None = error.code
    else:
        code = None
    if code is not None:
        assert code in ("NM201", "NM202")
        return
    assert PatternSet([found.pattern], case=False).find("some text") in ([], [0])


def test_hundreds_of_distinct_words_are_one_automaton() -> None:
    many = [f"word{number}" for number in range(2_000)]
    rules = [rule(n, KeywordMatcher(tuple(many[n::100]), (), True)) for n in range(100)]
    text = "word7 and word1999, not word20000"
    found = {slot for slot, (hits, _) in answers(rules, text).items() if hits}
    assert found == {("rule-7", "s0"), ("rule-99", "s0")}
    assert re.search(r"\bword7\b", text)
