"""Finds rule files and loads them as one set, every problem of every file at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nae_monitor.detect.aggregation import AggregationRule
from nae_monitor.detect.aggregation_reader import read_aggregation_rule
from nae_monitor.detect.bounds import (
    MAX_PROGRAM,
    MAX_SET_VALUES,
    over_bound,
    over_bounds,
    over_bytes,
)
from nae_monitor.detect.documents import arrange, kind_of
from nae_monitor.detect.matchers import RegexMatcher
from nae_monitor.detect.response import Suppression
from nae_monitor.detect.rule_reader import read_rule
from nae_monitor.detect.schema import Rule
from nae_monitor.detect.sources import found_files
from nae_monitor.errors import ConfigurationError, Mark, Problem, RuleError
from nae_monitor.strict_yaml import Document, nearest, read_documents

MAX_PROBLEMS = 1_000  # shown


@dataclass(frozen=True, eq=False, slots=True)
class RuleSet:
    """Rules that were loaded together, ordered by id.

    ``fingerprint`` is the SHA-256 of what the rules say: it changes with any of their values and
    not with comments, layout, file names or the order of files.
    """

    rules: tuple[Rule, ...]
    fingerprint: str
    aggregations: tuple[AggregationRule, ...] = ()

    @classmethod
    def of(cls, rules: Iterable[Rule], aggregations: Iterable[AggregationRule] = ()) -> RuleSet:
        """Order the rules and take their fingerprint."""
        ordered = tuple(sorted(rules, key=lambda rule: rule.id))
        others = tuple(sorted(aggregations, key=lambda rule: rule.id))
        content: list[Mapping[str, Any]] = [
            *(rule.canonical for rule in ordered),
            *(rule.canonical for rule in others),
        ]
        digests = [direction.digest for rule in ordered for direction in rule.directions()]
        if digests:  # left out where there are none, so that other sets keep their fingerprint
            content.append({"directions": digests})
        text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
        return cls(ordered, hashlib.sha256(text.encode()).hexdigest(), others)

    def __len__(self) -> int:
        return len(self.rules) + len(self.aggregations)

    @property
    def every(self) -> tuple[Rule | AggregationRule, ...]:
        """Rules, then aggregation rules."""
        return (*self.rules, *self.aggregations)

    @property
    def is_armed(self) -> bool:
        """Whether any rule is enabled."""
        return any(rule.enabled for rule in self.every)

    def unfit_for(self, base_model: str, layer: int) -> list[Problem]:
        """A problem for each enabled rule that asks for another NLA than this, or for there being
        none: nothing could ever match then, and every request would look clean.
        """
        problems = [] if self.is_armed else [nothing_to_match(self)]
        return problems + [
            Problem(
                Mark(rule.file),
                f"rule {rule.name!r} needs another NLA than layer {layer} of {base_model!r}",
                "disable it, or change its required_nla",
            )
            for rule in self.every
            if rule.enabled and rule.required_nla is not None
            if not rule.required_nla.admits(base_model, layer)
        ]

    def suppressions(self) -> Mapping[str, Suppression]:
        """What each rule asks to hold back, by rule id."""
        return {rule.id: rule.suppress for rule in self.every if rule.suppress is not None}


def nothing_to_match(rules: RuleSet) -> Problem:
    """That no rule of a set is enabled."""
    message = f"none of {len(rules)} rules is enabled" if len(rules) else "there is no rule"
    return Problem(Mark("detect.rules"), f"{message}: nothing could ever match")


def load_rules(paths: Sequence[str | Path]) -> RuleSet:
    """Load rule files, directories of them (``*.yaml``, searched throughout) and ``"builtin"``.

    Raises:
        RuleError: every problem of every file, each with file, line and column.
    """
    problems: list[Problem] = []
    arranged = arrange(_all_documents(found_files(paths, problems), problems), problems)
    rules = _all_rules(arranged, problems)
    problems.extend(_duplicates(rules))
    plain = [rule for rule, _ in rules if isinstance(rule, Rule)]
    others = [(rule, d) for rule, d in rules if isinstance(rule, AggregationRule)]
    resolver = _Resolver(plain, _faulty_names(arranged, rules), problems)
    aggregations = [resolver.resolved(rule, document) for rule, document in others]
    if problems:
        raise RuleError(_first(problems))
    return RuleSet.of(plain, aggregations)


def _all_documents(files: Sequence[Path], problems: list[Problem]) -> list[Document]:
    """What all files hold; nothing where that is too much to work through."""
    if over := over_bytes(files):
        problems.extend(over)
        return []
    documents: list[Document] = []
    values = 0
    for file in files:
        found = _documents(file, problems)
        documents += found
        values += sum(len(document.marks) for document in found)
        if values > MAX_SET_VALUES:
            amounts = [(document, len(document.marks)) for document in documents]
            problems.extend(over_bound("values", MAX_SET_VALUES, amounts))
            return []
    return documents


def _all_rules(
    arranged: Sequence[Document], problems: list[Problem]
) -> list[tuple[Rule | AggregationRule, Document]]:
    """The rules without problems; none is compiled where they are too much together."""
    over = over_bounds(arranged)
    rules: list[tuple[Rule | AggregationRule, Document]] = []
    program = 0
    for document in () if over else arranged:
        rule, found = _read(document)
        problems.extend(found)
        if rule is not None:
            rules.append((rule, document))
            program += _program(rule)
        if program > MAX_PROGRAM or len(problems) > MAX_PROBLEMS:
            break
    used = [(document, _program(rule)) for rule, document in rules]
    problems.extend(over or over_bound("RE2 instructions", MAX_PROGRAM, used))
    return rules


def _program(rule: Rule | AggregationRule) -> int:
    """RE2 instructions of all its patterns."""
    matchers = [s.matcher for s in rule.selections.values()] if isinstance(rule, Rule) else []
    return sum(matcher.program for matcher in matchers if isinstance(matcher, RegexMatcher))


def _first(problems: Sequence[Problem]) -> Sequence[Problem]:
    """As many of the problems as somebody may read, and how many more there are."""
    more = len(problems) - MAX_PROBLEMS
    if more <= 0:
        return problems
    where = problems[MAX_PROBLEMS].where
    mend = "mend those above first"
    return [*problems[:MAX_PROBLEMS], Problem(where, f"and at least {more} more problems", mend)]


def _read(document: Document) -> tuple[Rule | AggregationRule | None, list[Problem]]:
    if kind_of(document) == "aggregation":
        return read_aggregation_rule(document)
    return read_rule(document)


def _faulty_names(
    arranged: Sequence[Document], rules: Sequence[tuple[Rule | AggregationRule, Document]]
) -> frozenset[str]:
    """Names of rules that have problems of their own: whoever names them is not at fault."""
    read = {id(document) for _, document in rules}
    faulty = [d.value for d in arranged if id(d) not in read and isinstance(d.value, dict)]
    return frozenset(str(v[key]) for v in faulty for key in ("name", "id") if key in v)


class _Resolver:
    """Turns ids in aggregation rules to names, once every rule they can name is known."""

    def __init__(
        self, rules: Sequence[Rule], faulty: frozenset[str], problems: list[Problem]
    ) -> None:
        self._faulty, self._problems = faulty, problems
        self._plain = [rule.name for rule in rules]
        self._names = {rule.id: rule.name for rule in rules} | {n: n for n in self._plain}
        self._enabled = {rule.name for rule in rules if rule.enabled}

    def resolved(self, rule: AggregationRule, document: Document) -> AggregationRule:
        """The rule by names; a problem for each that no enabled rule has."""
        for key in ("rules", "absent"):
            for index, name in enumerate(getattr(rule, key)):
                self._check(name, rule.enabled, document.mark(("aggregation", key, index)))
        found = {
            key: tuple(self._names.get(name, name) for name in getattr(rule, key))
            for key in ("rules", "absent")
        }
        return replace(rule, rules=found["rules"], absent=found["absent"])

    def _check(self, name: str, asked: bool, where: Mark) -> None:
        if name in self._faulty:
            return
        if name not in self._names:
            hint = nearest(name, self._plain)
            self._problems.append(Problem(where, f"no rule {name!r}", hint, "NM110"))
        elif asked and self._names[name] not in self._enabled:
            mend = "enable it, or disable this rule too"
            self._problems.append(Problem(where, f"the rule {name!r} is disabled", mend))


def _documents(file: Path, problems: list[Problem]) -> list[Document]:
    try:
        found = read_documents(file)
        if not found:  # as while it is being written: no rules is not the same as these rules
            problems.append(Problem(Mark(str(file)), "holds no rule", "write one or remove it"))
        return found
    except ConfigurationError as error:
        problems.extend(error.problems)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # What the YAML loader raises for a tagged scalar that is not what its tag says.
        message = f"holds a value that is not of its type: {type(error).__name__}"
        problems.append(Problem(Mark(str(file)), message, "quote dates and tagged values"))
    return []


def _duplicates(rules: Sequence[tuple[Rule | AggregationRule, Document]]) -> list[Problem]:
    problems: list[Problem] = []
    for key in ("id", "name"):
        first: dict[Any, Document] = {}
        for rule, document in rules:
            value = getattr(rule, key)
            if value in first:
                message = f"{key} {value!r} is already that of {first[value].mark((key,))}"
                where = document.mark((key,))
                problems.append(Problem(where, message, "give each rule its own", "NM102"))
            first.setdefault(value, document)
    return problems
