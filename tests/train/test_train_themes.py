from __future__ import annotations

import re
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
import tiny_trainer

from nae_monitor.errors import InputDataError
from nae_monitor.train import themes
from nae_monitor.train.themes import DIGEST_CHARACTERS, KINDS, Theme, theme_of, written_themes

PACKAGE = resources.files("nae_monitor.train")


def lines(name: str) -> list[list[str]]:
    text = (PACKAGE / name).read_text(encoding="ascii")
    assert text.endswith("\n")
    return [line.split("\t") for line in text.splitlines()]


def test_the_committed_phrases_are_many_of_known_kinds_under_distinct_keys() -> None:
    rows = lines(themes.PHRASES)
    assert len(rows) >= 3000
    assert {len(row) for row in rows} == {3}
    keys = [key for key, _, _ in rows]
    assert keys == sorted(set(keys))
    assert all(re.fullmatch(rf"[0-9a-f]{{{DIGEST_CHARACTERS}}}", key) for key in keys)
    assert {kind for _, kind, _ in rows} == KINDS.keys()


def test_the_committed_phrases_are_eight_to_fourteen_plain_words() -> None:
    """Nothing in them may look like a part of the explanation around them."""
    for _, _, phrase in lines(themes.PHRASES):
        assert 8 <= len(phrase.split()) <= 14
        assert phrase == " ".join(phrase.split())
        assert phrase.isprintable()
        assert not set(phrase) & set('";:<>[]{}\\')


def test_every_kind_has_phrases_of_its_own() -> None:
    counts = Counter(kind for _, kind, _ in lines(themes.PHRASES))
    assert min(counts.values()) >= 50


def test_the_second_reading_is_of_committed_phrases_and_counts_as_the_module_says() -> None:
    rows = lines("phrases_check.tsv")
    assert {key for key, _, _ in rows} <= written_themes().keys()
    assert len({key for key, _, _ in rows}) == len(rows) == 200
    said = re.sub(r"\s+", " ", themes.__doc__ or "")
    kind = Counter(word for _, word, _ in rows)
    phrase = Counter(word for _, _, word in rows)
    assert f"kind right in {kind['ok']}, arguable in {kind['arguable']}" in said
    assert f"wrong in {kind['wrong']}; phrase right in {phrase['ok']}" in said
    assert f"imprecise in {phrase['imprecise']}, wrong in {phrase['wrong']}." in said


def test_the_read_themes_are_the_lines_of_the_file() -> None:
    rows = lines(themes.PHRASES)
    assert dict(written_themes()) == {key: Theme(kind, phrase) for key, kind, phrase in rows}


def test_a_document_is_told_by_its_written_theme_and_else_by_its_sources_kind() -> None:
    key, theme = next(iter(written_themes().items()))
    whole = key + "0" * (64 - len(key))
    assert theme_of(whole, "toxic") == theme
    assert theme_of("x" + whole[1:], "toxic") == Theme("toxic")
    own = tiny_trainer.document("no reader ever saw this sentence")
    assert theme_of(own.digest, own.kind) == Theme("smalltalk")


def test_a_theme_reads_as_its_label_and_its_phrase() -> None:
    assert Theme("weapons").text == "harmful request, weapons"
    assert Theme("weapons", "asks how to").text == "harmful request, weapons: asks how to"


def test_labels_are_distinct_and_carry_nothing_that_ends_a_part() -> None:
    labels = [kind.label for kind in KINDS.values()]
    assert len(set(labels)) == len(labels) == 20
    assert not any(set(label) & set('";:<>') for label in [*labels, themes.UNCLEAR, themes.OPENING])
    assert not {themes.UNCLEAR, themes.OPENING} & set(labels)


def test_harm_is_told_by_the_kind() -> None:
    ordinary = {"smalltalk", "likes", "advice", "facts", "writing", "planning", "technical", "code"}
    assert {key for key, kind in KINDS.items() if not kind.harmful} == ordinary


@pytest.mark.parametrize(
    "line",
    [
        "0123456789abcdef\tplanning",
        "0123456789abcdef\tno such kind\tasks for a plan",
        "0123\tplanning\tasks for a plan",
        "0123456789abcdef\tplanning\tasks\tfor a plan",
        "",
    ],
)
def test_a_damaged_phrase_file_is_named_with_its_line(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / themes.PHRASES).write_text(f"0123456789abcde0\tplanning\tasks\n{line}\n")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    written_themes.cache_clear()
    try:
        with pytest.raises(InputDataError, match=r"phrases\.tsv:2 is no digest"):
            written_themes()
    finally:
        written_themes.cache_clear()
