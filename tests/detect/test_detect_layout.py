"""The canonical order of keys, and the JSON Schema of rule files."""

from __future__ import annotations

import datetime
import random
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from detect_support import SIMPLE
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.detect import builtin_rules_directory, load_rules
from nae_monitor.detect.sources import rule_files
from nae_monitor.detect.tools.json_schema import rule_schema
from nae_monitor.detect.tools.layout import KEY_ORDER, laid_out
from nae_monitor.errors import RuleError
from nae_monitor.strict_yaml import read_documents

REFERENCE = Path(__file__).with_name("reference_rule.yaml").read_text(encoding="utf-8")
SHIPPED = rule_files([builtin_rules_directory()])
VALIDATOR = jsonschema.Draft202012Validator(rule_schema())


def values(text: str) -> list[Any]:
    return [document.value for document in read_documents("a.yaml", text)]


def shuffled(text: str, seed: int) -> str:
    """The same keys in another order, each under a comment of its own."""
    chunks: list[str] = []
    for line in text.splitlines(keepends=True):
        if line[0] not in " #\n":
            chunks.append(f"# about {line.partition(':')[0]}\n")
            chunks[-1] += line
        else:
            chunks[-1] += line
    random.Random(seed).shuffle(chunks)
    return "".join(chunks)


@given(st.integers(0, 10_000))
def test_any_order_is_put_right_and_comments_stay_with_their_keys(seed: int) -> None:
    text = shuffled(REFERENCE, seed)
    after = laid_out(text, "a.yaml")
    assert values(after) == values(text)
    assert Counter(after.splitlines()) == Counter(text.splitlines())
    lines = after.splitlines()
    keys = [line.partition(":")[0] for line in lines if line[:1] not in ("", " ", "#")]
    assert keys == sorted(keys, key=KEY_ORDER.index)
    for number, line in enumerate(lines):
        if line.startswith("# about "):
            assert lines[number + 1].startswith(line.removeprefix("# about ") + ":")
    assert laid_out(after, "a.yaml") == after


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_rules_are_in_canonical_order(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert laid_out(text, str(file)) == text


def test_the_condition_goes_behind_its_selections() -> None:
    text = "detection:\n  condition: a\n  # why\n  a: {regex: [x]}\n\n# end\n"
    assert (
        laid_out(text, "a") == "detection:\n  # why\n  a: {regex: [x]}\n  condition: a\n\n# end\n"
    )


@pytest.mark.parametrize(
    "text",
    ["", "{title: b, schema_version: 1}\n", "- a\n- b\n", "title: b\n", "--- {b: 1, a: 2}\n"],
)
def test_what_has_no_keys_on_lines_stays_as_it_is(text: str) -> None:
    assert laid_out(text, "a") == text


def test_documents_of_a_stream_keep_their_order() -> None:
    text = "title: b\nschema_version: 1\n---\ntitle: c\nschema_version: 1\n"
    after = "schema_version: 1\ntitle: b\n---\nschema_version: 1\ntitle: c\n"
    assert laid_out(text, "a") == after


@pytest.mark.parametrize(
    "kind", ["override: {rule: a, severity: replace}", "list: words", "macro: m"]
)
def test_what_a_document_is_stands_first(kind: str) -> None:
    assert laid_out(f"severity: low\n{kind}\ntitle: t\n", "o").splitlines()[0] == kind


def test_block_text_keeps_its_lines() -> None:
    text = "title: |+\n  # not a comment\n\n  two\n\nschema_version: 1\n"
    assert values(laid_out(text, "a")) == values(text)


@given(st.text(alphabet="ab:-# \n|>'\"{}[],", max_size=80))
def test_no_text_loses_its_meaning(text: str) -> None:
    try:
        before = values(text)
    except Exception:  # noqa: BLE001 - whatever reading refuses, formatting refuses as well
        return
    assert values(laid_out(text, "a")) == before


def as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return value.isoformat() if isinstance(value, datetime.date) else value


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_rules_keep_to_the_schema(file: Path) -> None:
    for value in values(file.read_text(encoding="utf-8")):
        VALIDATOR.validate(as_json(value))


def test_the_reference_rule_keeps_to_the_schema() -> None:
    VALIDATOR.validate(as_json(values(REFERENCE)[0]))


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(rule_schema())


PATHS: list[tuple[str | int, ...]] = [
    *((key,) for key in KEY_ORDER if key not in ("list", "macro", "override", "aggregation")),
    ("nonsense",),
    ("scope", "phase"),
    ("scope", "layers"),
    ("scope", "nonsense"),
    ("fidelity", "min"),
    ("fidelity", "below"),
    ("detection", "condition"),
    ("detection", "user_asked"),
    ("detection", "user_asked", "field"),
    ("detection", "user_asked", "regex"),
    ("detection", "user_asked", "nonsense"),
    ("detection", "conceal_fuzzy", "fuzzy", "score"),
    ("detection", "conceal_sem", "semantic", "threshold"),
    ("tests", 0, "expect"),
    ("tests", 0, "explanation"),
    ("tests", 0, "nonsense"),
    ("exceptions", 0, "reason"),
    ("exceptions", 0, "nonsense"),
]
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 200),
    st.floats(-5, 200),
    st.sampled_from(["", "x", "high", "prompt", "match", "drop"]),
    st.lists(st.one_of(st.integers(0, 3), st.just("x")), max_size=2),
    st.dictionaries(st.sampled_from(["match", "x", "id"]), st.integers(0, 3), max_size=2),
)


@given(st.sampled_from(PATHS), JUNK)
def test_what_the_schema_refuses_the_reader_refuses(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[str | int, ...], junk: Any
) -> None:
    value = as_json(values(REFERENCE)[0])
    inner = value
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = junk
    if VALIDATOR.is_valid(value):
        return
    file = tmp_path_factory.mktemp("rules") / "a.yaml"
    file.write_text(yaml.safe_dump(value))
    with pytest.raises(RuleError):
        load_rules([file])


@pytest.mark.parametrize("key", ["title", "id", "name", "severity", "schema_version"])
def test_a_missing_key_is_refused_by_both(tmp_path: Path, key: str) -> None:
    value = yaml.safe_load(SIMPLE)
    del value[key]
    assert not VALIDATOR.is_valid(value)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(value))
    with pytest.raises(RuleError):
        load_rules([tmp_path])
