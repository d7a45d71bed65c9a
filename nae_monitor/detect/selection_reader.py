"""Reads the selections of a rule: one matcher each, and where and how it looks."""

from __future__ import annotations

from typing import Literal, cast, get_args

from nae_monitor.detect.bounds import CODE, MAX_RULE_PROGRAM
from nae_monitor.detect.figure_reader import read_activation, read_value
from nae_monitor.detect.matchers import (
    FuzzyMatcher,
    FuzzyScorer,
    KeywordMatcher,
    PatternError,
    RegexMatcher,
    TextMatcher,
    compile_pattern,
)
from nae_monitor.detect.reading import Reader
from nae_monitor.detect.schema import Selection
from nae_monitor.detect.semantic import SemanticMatcher
from nae_monitor.detect.text import Quotes, folded
from nae_monitor.detect.views import FIELDS, REQUEST_PREFIX
from nae_monitor.errors import Problem
from nae_monitor.strict_yaml import nearest

MATCHERS = ("keywords", "regex", "fuzzy", "semantic", "activation", "value")
MAX_PHRASE_CHARS = 500
DEFAULT_FUZZY_SCORE = 88.0
OPTIONS = ("field", "quotes", "case", "word")


def read_selection(reader: Reader, name: str) -> Selection | None:
    """The selection at ``reader``; None where it has problems, which are then reported."""
    before = len(reader.problems)
    kinds = [kind for kind in MATCHERS if kind in reader.value]
    if len(kinds) != 1:
        found = " and ".join(sorted(kinds)) or "none"
        mend = "give one of: " + ", ".join(MATCHERS)
        reader.fault(None, f"selection {name!r} needs one matcher, found {found}", mend)
    if kinds and kinds[0] in ("activation", "value"):
        looked = read_activation(reader) if kinds[0] == "activation" else read_value(reader)
        reader.finish(known=(*MATCHERS, "field"))
        if looked is None or len(reader.problems) > before:
            return None
        return Selection(name, looked[0], "any", True, looked[1])
    case = reader.boolean("case", False)
    quotes = cast(Quotes, reader.choice("quotes", get_args(Quotes), "any"))
    field = _field(reader)
    matcher: TextMatcher | SemanticMatcher | None = None
    if reader.has("keywords"):
        matcher = _keywords(reader.child("keywords"), reader.boolean("word", True), case)
    if reader.has("regex"):
        matcher = _regex(reader, case)
    if reader.has("fuzzy"):
        matcher = _fuzzy(reader.child("fuzzy"), case)
    if reader.has("semantic"):
        inner = reader.child("semantic")
        field = _inner_field(reader, inner, field)
        matcher = _semantic(inner)
    reader.finish(known=(*MATCHERS, *OPTIONS))
    if len(reader.problems) > before or matcher is None:
        return None
    return Selection(name, field, quotes, case or isinstance(matcher, SemanticMatcher), matcher)


def _field(reader: Reader) -> str:
    field = reader.text("field", FIELDS[0])
    key = field.removeprefix(REQUEST_PREFIX)
    if field not in FIELDS and (key == field or not key):
        hint = nearest(field, (*FIELDS, REQUEST_PREFIX + "KEY"))
        reader.fault("field", f"unknown field {field!r}", hint)
    return field


def _inner_field(outer: Reader, inner: Reader, field: str) -> str:
    """The reference also writes a semantic selection's field beside its exemplars."""
    if not inner.has("field"):
        return field
    if outer.has("field"):
        inner.fault("field", "field is given twice", "keep one")
    return _field(inner)


def _keywords(reader: Reader, word: bool, case: bool) -> KeywordMatcher:
    groups: list[tuple[str, ...]] = []
    for key in ("any", "all"):
        words = reader.texts(key, MAX_PHRASE_CHARS)
        groups.append(tuple(_folded(reader, key, words, case)))
    if not any(groups):
        reader.fault(None, "keywords lists no word", "write `any: [word, …]` or `all: [word, …]`")
    reader.finish()
    return KeywordMatcher(groups[0], groups[1], word)


def _folded(reader: Reader, key: str, phrases: tuple[str, ...], case: bool) -> list[str]:
    plain = [folded(phrase, case=case).strip() for phrase in phrases]
    if not all(plain):
        reader.fault(key, f"{key} has an entry of invisible characters only", "remove it")
    return plain


def _regex(reader: Reader, case: bool) -> RegexMatcher:
    compiled = []
    patterns = reader.sequence("regex")
    if not patterns:
        reader.fault("regex", "regex lists no pattern", "write `regex: ['…']`")
    for index, pattern in enumerate(patterns):
        where = reader.document.mark((*reader.path, "regex", index))
        if not isinstance(pattern, str):
            reader.problems.append(Problem(where, "a pattern must be text", "quote it"))
            continue
        if reader.spent["instructions"] > MAX_RULE_PROGRAM:
            message = f"the rule's patterns need more than {MAX_RULE_PROGRAM} RE2 instructions"
            reader.problems.append(Problem(where, message, "split it, or repeat less", CODE))
            break
        try:
            compiled.append(compile_pattern(pattern, case))
            reader.spent["instructions"] += int(compiled[-1].programsize)
        except PatternError as error:
            reader.problems.append(Problem(where, str(error), error.mend, error.code))
    return RegexMatcher(tuple(compiled))


def _fuzzy(reader: Reader, case: bool) -> FuzzyMatcher:
    phrases = reader.texts("any", MAX_PHRASE_CHARS)
    if not phrases:
        reader.fault(None, "fuzzy lists no phrase", "write `any: [a phrase, …]`")
    plain = _folded(reader, "any", phrases, case)
    score = reader.number("score", 1, 100, DEFAULT_FUZZY_SCORE)
    scorer = reader.choice("scorer", get_args(FuzzyScorer), "partial_ratio")
    exact = reader.boolean("exact", False)
    reader.finish()
    return FuzzyMatcher(tuple(plain), cast(float, score), cast(FuzzyScorer, scorer), exact)


def _semantic(reader: Reader) -> SemanticMatcher:
    exemplars = reader.texts("exemplars", MAX_PHRASE_CHARS)
    if not exemplars:
        reader.fault(None, "semantic lists no exemplar", "write `exemplars: [a sentence, …]`")
    negatives = reader.texts("negatives", MAX_PHRASE_CHARS)
    if not reader.has("threshold"):
        reader.fault(None, "semantic lacks its threshold", "add `threshold: 0.6` (a cosine)")
    threshold = reader.number("threshold", -1, 1, 1.0)
    margin = reader.number("margin", 0, 2, 0.0)
    granularity = reader.choice("granularity", ("sentence", "full"), "sentence")
    reader.finish(unsupported={"encoder"})
    return SemanticMatcher(
        exemplars,
        negatives,
        cast(float, threshold),
        cast(float, margin),
        cast(Literal["sentence", "full"], granularity),
    )
