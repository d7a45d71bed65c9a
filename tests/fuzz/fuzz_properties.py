"""What must hold for any bytes: of rule files, of matchers and of normalised text.

Each property takes the bytes a fuzzer makes up and raises where the package breaks its word. They
need no fuzzer: ``test_fuzz_replay.py`` runs them over seeds and over what a fuzzer once found.
"""

from __future__ import annotations

import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nae_monitor.detect.conditions import Name
from nae_monitor.detect.lint import lint
from nae_monitor.detect.matchers import KeywordMatcher
from nae_monitor.detect.matching import TextMatchers, ask_matcher
from nae_monitor.detect.matching.compiled import UNKNOWN_COUNTER
from nae_monitor.detect.packs import load_rules
from nae_monitor.detect.rule_reader import read_rule
from nae_monitor.detect.schema import Rule, Selection
from nae_monitor.detect.text import (
    MAX_CLUSTER_CHARS,
    MappedText,
    normalise,
    paragraphs,
    select_quotes,
    sentences,
    word_shadow,
)
from nae_monitor.detect.views import MAX_FIELD_CHARS, Missing, Subject, Views
from nae_monitor.errors import Problem, RuleError
from nae_monitor.health import Health
from nae_monitor.strict_yaml import Document

FIELD_END, WORD_END = "\x1e", "\x1f"
KINDS = ("keywords any", "keywords all", "regex", "fuzzy")
LOOKS = ("explanation", "explanation.head", "explanation.final", "prompt")
SCORERS = ("partial_ratio", "ratio", "token_sort_ratio", "token_set_ratio")


def rule_file(data: bytes) -> None:
    """A rule file of any bytes loads, or every problem has its file; lint reports either way."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "rule.yaml"
        file.write_bytes(data)
        try:
            rules = load_rules([file])
        except RuleError as error:
            found: tuple[Problem, ...] = error.problems
            loaded = False
        else:
            found = ()
            loaded = bool(rules.fingerprint)
        assert loaded or found
        assert all(problem.where.file and problem.message for problem in found)
        report = lint([file])
        assert loaded or report.worst == "error"


def matchers(data: bytes) -> None:
    """Selections over a text answer as they do alone, as a plain search does, and in bounds.

    The bytes are the text and then one selection after the other, see :func:`selections_in`.
    """
    text, *found = data.decode("utf-8", "replace").split(FIELD_END)
    text = text[:MAX_FIELD_CHARS]
    rule = rule_of(dict(selections_in(found)))
    if rule is None:
        return
    health = Health()
    ask = TextMatchers([rule], health)
    views = Views(Subject(text or "x", text, "", "", {}))
    for selection in rule.selections.values():
        view = views.view(selection.field, selection.quotes, selection.case)
        if isinstance(view, Missing):
            continue
        hits, why = ask(rule, selection, view)
        assert not (hits and why)
        if not why:
            assert (hits, why) == ask_matcher(rule, selection, view)
        for hit in hits:
            span = view.span(selection.name, hit)
            assert 0 <= span.start <= span.end <= len(view.whole)
        _agree_with_a_plain_search(selection, view.text, bool(hits), why)
    assert set(health.counters()) <= {UNKNOWN_COUNTER}


def _agree_with_a_plain_search(selection: Selection, text: str, matched: bool, why: str) -> None:
    matcher = selection.matcher
    if isinstance(matcher, KeywordMatcher) and not matcher.word and not why:
        wanted = all(word in text for word in matcher.all_of)
        if matcher.any_of:
            wanted = wanted and any(word in text for word in matcher.any_of)
        assert matched == wanted


def selections_in(found: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Selections as a rule file writes them: two letters of options, then words or patterns."""
    for number, one in enumerate(found[:8]):
        options, words = one[:2].ljust(2, "0"), one[2:].split(WORD_END)[:8]
        first, second = ord(options[0]), ord(options[1])
        kind = KINDS[first % 4]
        selection: dict[str, Any] = {
            "field": LOOKS[first // 4 % 4],
            "quotes": ("any", "outside", "only")[second % 3],
            "case": bool(second & 4),
        }
        if kind == "regex":
            selection["regex"] = words
        elif kind == "fuzzy":
            score = 30 + second % 71
            # "exact" leaves nothing out that the plain score would find.
            fuzzy = {"any": words, "score": score, "scorer": SCORERS[second // 8 % 4]}
            selection["fuzzy"] = {**fuzzy, "exact": True}
        else:
            selection["keywords"] = {kind.removeprefix("keywords "): words}
            selection["word"] = bool(second & 8)
        yield f"s{number}", selection


def rule_of(selections: Mapping[str, Any]) -> Rule | None:
    """A rule of these selections; None where they cannot make one, for reasons it gives."""
    value = {
        "schema_version": 1,
        "title": "Made up",
        "id": "6b1f0c1e-3c1d-4c7e-9a53-0d7f6a4b9e01",
        "name": "made_up",
        "severity": "low",
        "detection": {**selections, "condition": "1 of them"},
    }
    rule, problems = read_rule(Document(value, {}, "made_up.yaml"))
    assert (rule is None) == bool(problems)
    assert rule is None or not isinstance(rule.condition, Name)
    return rule


def text(data: bytes) -> None:
    """Normalised text and each part of it point into the original, and say what that says."""
    original = _any_text(data)
    for case in (False, True):
        mapped = normalise(original, case=case)
        _in_bounds(mapped, len(original))
        assert word_shadow(mapped.text).encode() is not None
        assert len(word_shadow(mapped.text)) == len(mapped.text)
        if longest_mark_run(original) < MAX_CLUSTER_CHARS // 2:
            assert mapped.text == plain_normal_form(original, case)
        for quotes in ("any", "outside", "only"):
            part = select_quotes(mapped, quotes)  # type: ignore[arg-type]
            assert len(part.text) == len(part.starts) == len(part.ends)
            if part.text:
                left, right = part.origin(0, len(part.text))
                assert 0 <= left <= right <= len(original)
        for start, end in (*sentences(mapped.text), *paragraphs(mapped.text)):
            assert 0 <= start < end <= len(mapped.text)
            left, right = mapped.origin(start, end)
            assert mapped.text[start:end] in normalise(original[left:right], case=case).text


def _any_text(data: bytes) -> str:
    """Text of every kind: plain, with lone surrogates, and from all over Unicode."""
    if data[:1] == b"\xff":
        return data[1:].decode("utf-16-le", "replace")
    return data.decode("utf-8", "surrogateescape" if data[:1] == b"\xfe" else "replace")


def _in_bounds(mapped: MappedText, length: int) -> None:
    assert len(mapped.text) == len(mapped.starts) == len(mapped.ends)
    places = list(zip(mapped.starts, mapped.ends, strict=True))
    assert all(0 <= start < end <= length for start, end in places)
    assert places == sorted(places)


def plain_normal_form(original: str, case: bool) -> str:
    """NFKC(casefold(NFKC(t))) in one piece, without a map."""
    kept = "".join(
        "\ufffd" if "\ud800" <= c <= "\udfff" else c for c in original if not _ignorable(c)
    )
    kept = unicodedata.normalize("NFKC", kept)
    return kept if case else unicodedata.normalize("NFKC", kept.casefold())


def _ignorable(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or not normalise(character).text


def longest_mark_run(original: str) -> int:
    """The longest run of characters that join the one before them."""
    run = best = 0
    for character in unicodedata.normalize("NFKD", original):
        joins = unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"
        run = run + 1 if joins or _ignorable(character) else 0
        best = max(best, run)
    return best


PROPERTIES: Mapping[str, Callable[[bytes], None]] = {
    "rule_file": rule_file,
    "matchers": matchers,
    "text": text,
}
