"""Changes to a rule that may rid it of false positives; :mod:`.tune` tries them for real."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import yaml

from nae_monitor.detect.conditions import supporting_names
from nae_monitor.detect.evaluation import Answer
from nae_monitor.detect.matchers import FuzzyMatcher, KeywordMatcher, RegexMatcher
from nae_monitor.detect.schema import Fidelity, Rule
from nae_monitor.detect.semantic import SemanticMatcher
from nae_monitor.detect.tools.corpus import Sample

Kind = Literal["threshold", "fidelity", "scope", "negative", "drop", "exception"]
MAX_VALUES = 16  # tried of one figure
MAX_ITEMS = 64  # of one selection that are tried without
MAX_NEGATIVES = 8
EARLY_TOKENS = 64  # up to here a later start is worth trying: early positions decode to the prior
MARGIN_STEPS = (0.02, 0.05, 0.1, 0.15)


@dataclass(frozen=True, eq=False, slots=True)
class Candidate:
    """One change. ``family``: of those that turn the same screw only the mildest best is told."""

    kind: Kind
    family: str
    what: str
    snippet: str  # YAML to write into the rule
    change: Callable[[Rule], Rule]


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """A sample and what each selection of the rule says of it."""

    sample: Sample
    answers: Mapping[str, Answer]


def candidates(rule: Rule, wrong: Sequence[Seen]) -> Iterator[Candidate]:
    """Changes to what the rule has, milder ones of a family first."""
    for name in sorted(supporting_names(rule.condition)):
        yield from _thresholds(rule, name, wrong)
        yield from _negatives(rule, name, wrong)
        yield from _drops(rule, name)
    yield from _gates(rule, wrong)
    yield from _starts(rule, wrong)


def _thresholds(rule: Rule, name: str, wrong: Sequence[Seen]) -> Iterator[Candidate]:
    matcher = rule.selections[name].matcher
    scores = sorted({s for one in wrong for s in _scores(one.answers[name])})
    if isinstance(matcher, FuzzyMatcher):
        for value in _spread(min(math.floor(score) + 1, 100) for score in scores):
            if value > matcher.score:
                yield _figure(rule, name, "fuzzy", "score", value, "score")
    elif isinstance(matcher, SemanticMatcher):
        for value in _spread(math.floor(score * 100 + 1) / 100 for score in scores):
            if matcher.threshold < value <= 1:
                yield _figure(rule, name, "semantic", "threshold", value, "threshold")
        for step in MARGIN_STEPS if matcher.negatives else ():
            value = round(matcher.margin + step, 2)
            yield _figure(rule, name, "semantic", "margin", value, "margin")


def _scores(answer: Answer) -> list[float]:
    return [span.score for span in answer.spans if span.score is not None]


def _spread(values: Iterable[float]) -> list[float]:
    """At most MAX_VALUES of them, lowest and highest included."""
    distinct = sorted(set(values))
    if len(distinct) <= MAX_VALUES:
        return distinct
    return [distinct[i * (len(distinct) - 1) // (MAX_VALUES - 1)] for i in range(MAX_VALUES)]


def _figure(rule: Rule, name: str, kind: str, key: str, value: float, attribute: str) -> Candidate:
    old = getattr(rule.selections[name].matcher, attribute)
    return Candidate(
        "threshold",
        f"{name}.{key}",
        f"{name}: {key} {old:g} -> {value:g}",
        written({"detection": {name: {kind: {key: value}}}}),
        lambda other: with_matcher(other, name, **{attribute: value}),
    )


def _negatives(rule: Rule, name: str, wrong: Sequence[Seen]) -> Iterator[Candidate]:
    matcher = rule.selections[name].matcher
    if not isinstance(matcher, SemanticMatcher):
        return
    found = [span.text.strip() for one in wrong for span in one.answers[name].spans]
    texts = [text for text in dict.fromkeys(found) if text and text not in matcher.negatives]
    for text in texts[:MAX_NEGATIVES]:
        yield Candidate(
            "negative",
            f"{name}.negatives.{text}",
            f"{name}: a negative more",
            written({"detection": {name: {"semantic": {"negatives": [text]}}}}),
            lambda other, text=text: _with_negative(other, name, text),  # type: ignore[misc]
        )


def _with_negative(rule: Rule, name: str, text: str) -> Rule:
    matcher = rule.selections[name].matcher
    return with_matcher(rule, name, negatives=(*getattr(matcher, "negatives", ()), text))


def _drops(rule: Rule, name: str) -> Iterator[Candidate]:
    """The selection without one of its alternatives."""
    matcher = rule.selections[name].matcher
    kinds: tuple[tuple[type, str, str], ...] = (
        (KeywordMatcher, "any_of", "keywords.any"),
        (RegexMatcher, "patterns", "regex"),
        (FuzzyMatcher, "phrases", "fuzzy.any"),
        (SemanticMatcher, "exemplars", "semantic.exemplars"),
    )
    for kind, attribute, place in kinds:
        if not isinstance(matcher, kind):
            continue
        items = getattr(matcher, attribute)
        for item in items[:MAX_ITEMS] if len(items) > 1 else ():
            text = getattr(item, "pattern", item)
            yield Candidate(
                "drop",
                f"{name}.{place}.{text}",
                f"{name}: without {text!r}",
                f"# remove from detection.{name}.{place}: {text!r}\n",
                lambda other, item=item, key=attribute: _without(other, name, key, item),  # type: ignore[misc]
            )


def _without(rule: Rule, name: str, attribute: str, item: Any) -> Rule:
    items = getattr(rule.selections[name].matcher, attribute)
    kept = tuple(other for other in items if other is not item and other != item)
    return with_matcher(rule, name, **{attribute: kept}) if kept else rule


def _gates(rule: Rule, wrong: Sequence[Seen]) -> Iterator[Candidate]:
    metric = rule.fidelity.metric if rule.fidelity else "fve"
    figures = [getattr(one.sample.decoding, metric, None) for one in wrong]
    known = [figure for figure in figures if isinstance(figure, float) and figure < 1]
    for value in _spread(math.floor(figure * 100 + 1) / 100 for figure in known):
        if rule.fidelity is not None and value <= rule.fidelity.minimum:
            continue
        unscored = rule.fidelity.unscored if rule.fidelity else "pass"
        gate = {"metric": metric, "min": value, "below": "drop", "unscored": unscored}
        yield Candidate(
            "fidelity",
            "fidelity",
            f"fidelity: drop decodes with {metric} under {value:g}",
            written({"fidelity": gate}),
            lambda other, value=value: _with_gate(other, value),  # type: ignore[misc]
        )


def _with_gate(rule: Rule, value: float) -> Rule:
    if rule.fidelity is None:
        return replace(rule, fidelity=Fidelity("fve", value, "drop", "pass"))
    return replace(rule, fidelity=replace(rule.fidelity, minimum=value, below="drop"))


def _starts(rule: Rule, wrong: Sequence[Seen]) -> Iterator[Candidate]:
    places = {one.sample.activation.position + 1 for one in wrong}
    for value in _spread(p for p in places if rule.scope.min_token_index < p <= EARLY_TOKENS):
        index = int(value)
        yield Candidate(
            "scope",
            "scope",
            f"scope: from token {index} on",
            written({"scope": {"min_token_index": index}}),
            lambda other, index=index: replace(  # type: ignore[misc]
                other, scope=replace(other.scope, min_token_index=index)
            ),
        )


def with_matcher(rule: Rule, name: str, **changes: Any) -> Rule:
    """The rule with another matcher in one selection."""
    selection = rule.selections[name]
    matcher = replace(selection.matcher, **changes)  # type: ignore[type-var]
    return replace(rule, selections={**rule.selections, name: replace(selection, matcher=matcher)})


def written(value: Mapping[str, Any]) -> str:
    """YAML in the order given; dates as dates."""
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=90))


def last_day(today: datetime.date, days: int = 90) -> datetime.date:
    """When a proposed exception expires: it should be looked at again."""
    return today + datetime.timedelta(days=days)
