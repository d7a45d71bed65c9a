"""Texts without end through every matcher and the whole engine: it returns and says if it cut."""

from pathlib import Path

import pytest
from detect_support import HEADER, LetterEncoder, activation, decoding, rules_of, transcript

from nae_monitor.detect import Judge, RuleSet
from nae_monitor.detect.matching import compiled, parts
from nae_monitor.detect.views import MAX_FIELD_CHARS
from nae_monitor.health import Health
from nae_monitor.records import FindingState

TEN_MB = 10_000_000
SELECTIONS = {
    "keywords": "keywords: {any: [zebra stripes]}",
    "parts of words": "keywords: {any: [zebra]}, word: false",
    "regex": "regex: ['zebra\\w+x']",
    "fuzzy": "fuzzy: {any: [zebra stripes are hidden], score: 90}",
    "fuzzy of whole texts": "fuzzy: {any: [zebra stripes], score: 90, scorer: token_set_ratio}",
    "quoted": "keywords: {any: [zebra stripes]}, quotes: only",
    "unquoted": "keywords: {any: [zebra stripes]}, quotes: outside",
    "semantic": "semantic: {exemplars: [zzzz zzzz], threshold: 0.99}",
}


def rules(tmp_path: Path, *selections: str, field: str = "prompt") -> RuleSet:
    def one(number: int, selection: str) -> str:
        head = HEADER.replace("6b1f0c1e", f"{number:08x}").replace("a_rule", f"rule_{number}")
        return f"{head}detection: {{a: {{{selection}, field: {field}}}, condition: a}}\n"

    return rules_of(tmp_path, *(one(*each) for each in enumerate(selections)))


@pytest.mark.parametrize("piece", ["a", "no word here. ", "“é\u0301\u200b隠 \ud800", '\n\n"x'])
def test_ten_megabytes_that_hold_nothing_are_undecided_by_every_matcher(
    tmp_path: Path, piece: str
) -> None:
    found = rules(tmp_path, *SELECTIONS.values())
    health = Health()
    judge = Judge(found, LetterEncoder(), health)
    text = piece * (TEN_MB // len(piece))
    findings = judge.judge(activation(), decoding("short"), transcript(prompt=text))
    assert [finding.state for finding in findings] == [FindingState.UNDECIDED] * len(found)
    assert all(finding.undecided for finding in findings)
    assert not any(name.startswith("failed.") for name in health.counters())


def test_what_stands_before_the_cut_is_found_and_what_stands_behind_it_is_no_miss(
    tmp_path: Path,
) -> None:
    judge = Judge(rules(tmp_path, SELECTIONS["keywords"]), None)
    filler = "word " * (MAX_FIELD_CHARS // 5)

    def state(text: str) -> FindingState:
        (finding,) = judge.judge(activation(), decoding("x"), transcript(prompt=text))
        return finding.state

    assert state("zebra stripes " + filler) is FindingState.MATCH
    assert state(filler + " zebra stripes") is FindingState.UNDECIDED


def test_a_text_that_too_many_phrases_may_be_in_is_undecided_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MAX_WORK", 10_000)
    health = Health()
    judge = Judge(rules(tmp_path, SELECTIONS["fuzzy"]), None, health)
    near = "zebra stripes as hid " * 30
    (finding,) = judge.judge(activation(), decoding("x"), transcript(prompt=near))
    assert finding.undecided == ("a: the text holds too many of the words",)
    assert health.counters()[compiled.UNKNOWN_COUNTER] == 1
    assert judge.judge(activation(), decoding("x"), transcript(prompt="quiet " * 99)) == ()


def test_patterns_that_match_too_much_of_a_text_are_undecided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MAX_WORK", 10_000)
    judge = Judge(rules(tmp_path, SELECTIONS["regex"]), None)
    text = "a " * 9_000 + "zebra1x"
    (finding,) = judge.judge(activation(), decoding("x"), transcript(prompt=text))
    assert finding.undecided == ("a: the text holds too many of the words",)


@pytest.mark.parametrize("kind", ["fuzzy of whole texts", "regex"])
def test_selections_asked_one_by_one_are_bounded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def fail(part: object, text: str) -> None:
        raise ValueError

    monkeypatch.setattr(parts.RegexPart, "find", fail)
    monkeypatch.setattr(compiled, "MAX_WORK", 50_000)
    judge = Judge(rules(tmp_path, SELECTIONS[kind]), None)
    (finding,) = judge.judge(activation(), decoding("x"), transcript(prompt="word " * 900))
    assert finding.undecided == ("a: the text holds too many of the words",)
    assert judge.judge(activation(), decoding("x"), transcript(prompt="word " * 9)) == ()
