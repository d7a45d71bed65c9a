"""Which risks rules cover, and which rules are not kept up."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from nae_monitor.detect.aggregation import AggregationRule
from nae_monitor.detect.packs import RuleSet
from nae_monitor.detect.schema import Rule
from nae_monitor.detect.semantic import Encoder
from nae_monitor.detect.tools.coverage import coverage
from nae_monitor.detect.tools.rates import Rate
from nae_monitor.detect.tools.taxonomy import PREFIX, TAXONOMY
from nae_monitor.records import FindingState

IssueKind = Literal["untested", "expired", "never_fired", "unclassified"]


@dataclass(frozen=True, slots=True)
class Category:
    """A risk and the enabled rules that claim to see it."""

    tag: str
    title: str
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing about one rule that wants care."""

    rule_name: str
    kind: IssueKind
    message: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """The taxonomy held against the rules. ``disabled`` rules cover nothing."""

    categories: tuple[Category, ...]  # those of the taxonomy first, then what rules add to it
    issues: tuple[Issue, ...]
    disabled: tuple[str, ...]

    @property
    def uncovered(self) -> tuple[Category, ...]:
        """Categories without a rule."""
        return tuple(category for category in self.categories if not category.rules)


def inventory(
    rule_set: RuleSet,
    encoder: Encoder | None,
    today: datetime.date,
    fired: Mapping[str, Rate] | None = None,
) -> Inventory:
    """Take stock.

    Args:
        rule_set: the rules.
        encoder: for tests of semantic selections without a score; without one they do not count.
        today: decides what has expired.
        fired: matches of judged samples or requests by rule name, from a backtest; None: not known.

    Raises:
        ConfigurationError: the encoder fails on the rules' own exemplars.
    """
    issues = [
        *_untested(rule_set, encoder),
        *_expired(rule_set, today),
        *_never_fired(rule_set, fired or {}),
        *_unclassified(rule_set),
    ]
    return Inventory(
        _categories(rule_set),
        tuple(sorted(issues, key=lambda issue: issue.rule_name)),
        tuple(rule.name for rule in rule_set.every if not rule.enabled),
    )


def _categories(rule_set: RuleSet) -> tuple[Category, ...]:
    enabled = [rule for rule in rule_set.every if rule.enabled]
    used = {tag for rule in enabled for tag in rule.tags if tag.startswith(PREFIX)}
    tags = [*TAXONOMY, *sorted(used - TAXONOMY.keys())]
    return tuple(
        Category(
            tag,
            TAXONOMY.get(tag, "(not in the taxonomy)"),
            tuple(sorted(rule.name for rule in enabled if tag in rule.tags)),
        )
        for tag in tags
    )


def _untested(rule_set: RuleSet, encoder: Encoder | None) -> Iterator[Issue]:
    for found in coverage(rule_set.rules, encoder):
        lacking = [] if found.matched else ["a match"]
        lacking += [] if found.not_matched else ["no match"]
        if lacking:
            yield Issue(found.rule_name, "untested", f"no test expects {' or '.join(lacking)}")
        unhit = [selection.name for selection in found.selections if not selection.hit]
        if unhit:
            message = f"no test makes {', '.join(unhit)} match"
            yield Issue(found.rule_name, "untested", message)
    for rule in rule_set.aggregations:
        expected = {test.expect for test in rule.tests}
        wanted = (FindingState.MATCH, FindingState.NO_MATCH)
        missing = [state.value.replace("_", " ") for state in wanted if state not in expected]
        if missing:
            yield Issue(rule.name, "untested", f"no test expects {' or '.join(missing)}")


def _expired(rule_set: RuleSet, today: datetime.date) -> Iterator[Issue]:
    for rule in rule_set.rules:
        for exception in rule.exceptions:
            if not exception.applies_on(today):
                message = f"exception {exception.name} expired on {exception.expires}"
                yield Issue(rule.name, "expired", message)


def _never_fired(rule_set: RuleSet, fired: Mapping[str, Rate]) -> Iterator[Issue]:
    for rule in rule_set.every:
        rate = fired.get(rule.name)
        if rate is None or rate.hits:
            continue
        if not rate.trials:
            yield Issue(rule.name, "never_fired", "nothing in the corpus is in its scope")
            continue
        bound = f"under {100 * rate.interval[1]:.2g} % at 95 %"
        message = f"never fired in {rate.trials} {_unit(rule)} ({bound})"
        yield Issue(rule.name, "never_fired", message)


def _unit(rule: Rule | AggregationRule) -> str:
    return "requests" if isinstance(rule, AggregationRule) else "samples"


def _unclassified(rule_set: RuleSet) -> Iterator[Issue]:
    for rule in rule_set.every:
        if not any(tag.startswith(PREFIX) for tag in rule.tags):
            yield Issue(rule.name, "unclassified", f"has no {PREFIX}* tag")
