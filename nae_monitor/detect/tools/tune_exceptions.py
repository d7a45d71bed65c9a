"""Exceptions a rule may need: words that its false positives share and no true one has."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from nae_monitor.detect.conditions import Name
from nae_monitor.detect.matchers import KeywordMatcher
from nae_monitor.detect.schema import Rule, RuleException, Selection
from nae_monitor.detect.tools.tune_candidates import Candidate, Seen, last_day, written
from nae_monitor.detect.views import REQUEST_PREFIX, Missing, Subject, Views

MAX_WORDS = 3  # of a phrase
MAX_OF_FIELD = 6
MAX_TEXT_CHARS = 20_000
MIN_PHRASE_CHARS = 4
FIELDS = ("prompt", "output", "explanation")
WHOLE_VALUES = ("request_id", "group_id")  # of one request each: no exception to make of them
_WORD = re.compile(r"[^\W_][\w'-]*")


def exception_candidates(
    rule: Rule, wrong: Sequence[Seen], right: Sequence[Seen], today: datetime.date
) -> Iterator[Candidate]:
    """Exceptions on phrases and request keys, those that take most false positives first.

    Of several false positives a phrase must be in two: one alone says little about the next.
    """
    keys = {key for one in wrong for key in _subject(one).request if key not in WHOLE_VALUES}
    for field in (*FIELDS, *(REQUEST_PREFIX + key for key in sorted(keys))):
        shared = Counter(term for one in wrong for term in _terms(one, field))
        barred = {term for one in right for term in _terms(one, field)}
        least = min(2, len(wrong))
        found = [(n, term) for term, n in shared.items() if n >= least and term not in barred]
        found.sort(key=lambda one: (-one[0], -len(one[1]), one[1]))
        for _, term in _distinct(found)[:MAX_OF_FIELD]:
            yield _candidate(rule, field, term, today)


def _subject(seen: Seen) -> Subject:
    sample = seen.sample
    return Subject.of(sample.activation, sample.decoding, sample.transcript)


def _terms(seen: Seen, field: str) -> set[str]:
    """Phrases of a text; of a request key its whole value."""
    view = Views(_subject(seen)).view(field, "any", False)
    if isinstance(view, Missing):
        return set()
    text = view.text[:MAX_TEXT_CHARS]
    if field.startswith(REQUEST_PREFIX):
        return {text.strip()} - {""}
    words = list(_WORD.finditer(text))
    found: set[str] = set()
    for start, first in enumerate(words):
        for last in words[start : start + MAX_WORDS]:
            phrase = text[first.start() : last.end()]
            if "  " not in phrase and "\n" not in phrase and len(phrase) >= MIN_PHRASE_CHARS:
                found.add(phrase)
    return found


def _distinct(found: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Without phrases inside longer ones that take as many."""
    kept: list[tuple[int, str]] = []
    for n, term in found:
        if not any(n == other and term in longer for other, longer in kept):
            kept.append((n, term))
    return kept


def _candidate(rule: Rule, field: str, term: str, today: datetime.date) -> Candidate:
    taken = {exception.name for exception in rule.exceptions}
    slug = re.sub(r"[^a-z0-9]+", "_", term.lower()).strip("_")[:40] or "phrase"
    name = next(n for n in (f"{slug}{i or ''}" for i in range(len(taken) + 1)) if n not in taken)
    expires = last_day(today)
    reason = f"false positives share {term!r}; say why they are harmless"
    when = {"field": field, "keywords": {"any": [term]}}
    entry = {"name": name, "when": when, "reason": reason, "expires": expires}
    return Candidate(
        "exception",
        f"exception.{field}.{term}",
        f"exception where {field} holds {term!r}, until {expires}",
        written({"exceptions": [entry]}),
        lambda other: _with_exception(other, name, field, term, expires),
    )


def _with_exception(rule: Rule, name: str, field: str, term: str, expires: datetime.date) -> Rule:
    own = f"exception.{name}"
    matcher = KeywordMatcher((term,), (), word=True)
    selection = Selection(own, field, "any", False, matcher)
    exception = RuleException(name, Name(own), "", expires)
    return replace(
        rule,
        selections={**rule.selections, own: selection},
        exceptions=(*rule.exceptions, exception),
    )
