"""Strict YAML: plain values with places, and nothing but ConfigurationError for anything else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.errors import ConfigurationError
from nae_monitor.strict_yaml import (
    MAX_DEPTH,
    MAX_FILE_BYTES,
    MAX_VALUES,
    nearest,
    read_document,
    read_documents,
    unknown_keys,
)

KEYS = st.text("abcdefghij_", min_size=1, max_size=6).map(lambda key: f"k{key}")
TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-9999, 9999) | KEYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)
YAMLISH = st.text(st.sampled_from("abc019:-?[]{}&*!|>'\"%#@`~<,. \n\t\r\x00\x1b\ud800é…=+_"))
FRAGMENTS = st.lists(
    st.sampled_from(
        [
            "!!int", "!!float", "!!timestamp", "!!bool", "!!binary", "!!python/object:os.system",
            "!!set", "!!omap", "!t", " x", " []", " {}", ": ", "- ", "\n", "  ", "a", "2024-99-99",
            "1:99", ".nan", "&a ", "*a", "<<", "?", "0x", "1e999", "''", "--- ", "...\n", "0b", "=",
        ]
    ),
    max_size=12,
).map("".join)  # fmt: skip


def message_of(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_documents("f.yaml", text)
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refusal(path: Path | str, text: str | None = None) -> str | None:
    """The message of the one exception allowed; None where the text was read."""
    try:
        read_documents(path, text)
    except ConfigurationError as error:
        return str(error)
    return None


@given(st.dictionaries(KEYS, TREES, max_size=5))
def test_a_plain_tree_comes_back_as_it_was_written(tree: dict[str, Any]) -> None:
    assert read_document("f", yaml.safe_dump(tree)).value == tree


@given(st.dictionaries(KEYS, TREES, max_size=5))
def test_json_is_read_as_json_reads_it(tree: dict[str, Any]) -> None:
    text = json.dumps(tree)
    assert read_document("f", text).value == json.loads(text)


@given(st.dictionaries(KEYS, TREES, min_size=1, max_size=5))
def test_every_path_has_a_place_inside_the_file(tree: dict[str, Any]) -> None:
    text = yaml.safe_dump(tree)
    document = read_document("f", text)
    lines = text.splitlines()
    for path, mark in document.marks.items():
        assert 1 <= mark.line <= len(lines)
        if path and isinstance(path[-1], str):
            assert lines[mark.line - 1][mark.column - 1 :].lstrip("'\"").startswith(path[-1])


@given(YAMLISH | FRAGMENTS | st.text())
@settings(max_examples=400)
def test_any_text_is_read_or_refused_by_one_configuration_error(text: str) -> None:
    message = refusal("f.yaml", text)
    assert message is None or (message.startswith("f.yaml") and "\n" not in message)


@given(data=st.binary(max_size=300))
@settings(max_examples=100)
def test_any_bytes_in_a_file_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "f.yaml"
    path.write_bytes(data)
    message = refusal(path)
    assert message is None or message.startswith(str(path))


@pytest.mark.parametrize(
    "scalar",
    [
        "2024-13-45",
        "!!int abc",
        "!!int ''",
        "!!float x",
        "!!timestamp x",
        "!!bool perhaps",
        "9" * 5000,
        "!!python/name:os.system",
        "!unknown x",
    ],
)
def test_a_scalar_that_is_not_what_it_says_is_refused_with_its_place(scalar: str) -> None:
    assert message_of(f"a: 1\nb: {scalar}").startswith("f.yaml:2:4: ")


@pytest.mark.parametrize("tag", ["!!set {a}", "!!python/object:os.x {}", "!x [1]", "!!omap []"])
def test_a_tagged_collection_is_refused(tag: str) -> None:
    assert "f.yaml:1:4" in message_of(f"a: {tag}")


def test_duplicate_keys_are_refused_at_the_second() -> None:
    assert message_of("a: 1\nb:\n  c: 1\n  c: 2") == "f.yaml:4:3: duplicate key 'c' (remove one)"


def test_keys_that_differ_only_in_quotes_are_duplicates() -> None:
    assert "duplicate key '1'" in message_of("1: a\n'1': b")


def test_an_alias_bomb_is_refused_before_it_is_built() -> None:
    levels = ["a0: &a0 [x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    assert "aliases are not allowed" in message_of("\n".join(levels))


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused_whatever_the_depth(opening: str) -> None:
    assert "nested too deeply" in message_of(opening * 5000)


def test_the_greatest_depth_allowed_is_read() -> None:
    assert read_document("f", "[" * MAX_DEPTH + "]" * MAX_DEPTH).value is not None


def test_a_file_of_ten_megabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_bytes(b"a" * 10_000_000)
    with pytest.raises(ConfigurationError, match=f"larger than {MAX_FILE_BYTES} bytes"):
        read_documents(path)


def test_a_device_without_end_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Not a regular file"):
        read_documents("/dev/zero")


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    with pytest.raises(ConfigurationError, match="Not a regular file"):
        read_documents(pipe)


@pytest.mark.parametrize(
    "number", ["1" + ":1" * 200_000, "1" + ":1" * 200_000 + ".5", "0x" + "f" * 5_000, "1_" * 9_000]
)
def test_a_number_of_very_many_digits_is_refused_at_once(number: str) -> None:
    assert "is a number or the like of" in message_of(f"a: {number}")


def test_a_file_of_too_many_values_is_refused_at_the_first_too_many() -> None:
    assert f"holds more than {MAX_VALUES} values" in message_of("[" + "1," * 200_000 + "1]")


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"a: 1\nb: \xe9", ":2:4: is not UTF-8"),
        ("a: 1".encode("utf-16"), ":1:1: is not UTF-8"),
        (b"a: 1\n\xc3\xa9: \x00", ":2:4: is not valid YAML"),
        (b"a:\n\tb: 1", ":2:1: is not valid YAML"),
    ],
    ids=["latin", "utf-16", "nul", "tab"],
)
def test_bytes_that_are_no_yaml_are_refused_at_their_place(
    tmp_path: Path, data: bytes, place: str
) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(data)
    assert f"f.yaml{place}" in (refusal(path) or "")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_document(path).value == {"a": 1}


@pytest.mark.parametrize("name", ["missing.yaml", ".", "a\0b"])
def test_a_path_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_documents(tmp_path / name)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: \xe9")
    with pytest.raises(ConfigurationError, match="is not UTF-8"):
        read_documents(path)


def test_broken_yaml_is_placed_at_the_fault() -> None:
    assert message_of("a: [1, 2\nb: 3").startswith("f.yaml:2:")


@pytest.mark.parametrize(("text", "count"), [("", 0), ("a: 1\n---\nb: 2", 2)])
def test_one_document_is_asked_for_and_one_only(text: str, count: int) -> None:
    with pytest.raises(ConfigurationError, match=f"holds {count} documents"):
        read_document("f", text)


def test_a_huge_key_is_cut_in_the_message() -> None:
    key = "x" * 100_000
    assert len(message_of(f"? {key}\n: 1\n? {key}\n: 2")) < 200


def test_unknown_keys_name_the_likeliest_one_meant() -> None:
    document = read_document("f", "detect: {rulez: []}")
    (problem,) = unknown_keys(document, ("detect",), ["rules", "encoder"])
    assert str(problem) == "f:1:10: unknown key 'rulez' (did you mean 'rules'?)"


def test_a_name_near_nothing_lists_what_is_known() -> None:
    assert nearest("zzz", ["b", "a"]) == "known: a, b"


def test_a_hint_costs_little_whatever_is_known() -> None:
    known = [f"{'k' * 20_000}{number}" for number in range(5_000)]
    assert len(nearest("x" * 20_000, known)) < 5_000


def test_a_path_without_a_place_takes_that_of_its_parent() -> None:
    document = read_document("f", "a: {b: 1}")
    assert document.mark(("a", "b", "c", 0)) == document.mark(("a", "b"))
