"""Seeds for the fuzzers, made from the shipped rules at run time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fuzz_properties import FIELD_END, KINDS, WORD_END

from nae_monitor.detect.sources import builtin_rules_directory
from nae_monitor.strict_yaml import read_documents

MAX_SEEDS = 60


def seeds(name: str) -> list[bytes]:
    """Seeds for the property ``name``, in a fixed order, at most 60."""
    files = sorted(builtin_rules_directory().rglob("*.yaml"))
    made = {"rule_file": _rule_files, "matchers": _matchers, "text": _texts}[name]
    found = [seed for file in files for seed in made(file.read_text("utf-8"))]
    return found[:: max(1, len(found) // MAX_SEEDS)][:MAX_SEEDS]


def _rule_files(content: str) -> Iterator[bytes]:
    yield content.encode()


def _texts(content: str) -> Iterator[bytes]:
    for document in read_documents("seed", content):
        for test in document.value.get("tests", ()):
            if "explanation" in test:
                yield str(test["explanation"]).encode()
                yield b"\xff" + str(test["explanation"]).encode("utf-16-le")


def _matchers(content: str) -> Iterator[bytes]:
    for document in read_documents("seed", content):
        found = document.value.get("detection", {})
        selections = [s for s in map(_selection, found.values()) if s]
        for test in document.value.get("tests", ()):
            yield FIELD_END.join([str(test.get("explanation")), *selections]).encode()


def _selection(value: Any) -> str:
    """A rule's selection in the form that :func:`fuzz_properties.selections_in` reads."""
    if not isinstance(value, dict):
        return ""
    if "regex" in value:
        return f"{_letter('regex')}0{WORD_END.join(value['regex'][:8])}"
    for kind, key in (("keywords any", "keywords"), ("fuzzy", "fuzzy")):
        words = value.get(key, {}).get("any", ())
        if words and all(isinstance(word, str) for word in words):
            return f"{_letter(kind)}0{WORD_END.join(words[:8])}"
    return ""


def _letter(kind: str) -> str:
    return chr(ord("0") + (KINDS.index(kind) - ord("0")) % 4)
