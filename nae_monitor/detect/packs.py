"""Finds rule files and loads them as one set, every problem of every file at once."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nae_monitor.detect.aggregation import AggregationRule
from nae_monitor.detect.aggregation_reader import read_aggregation_rule
from nae_monitor.detect.documents import arrange, kind_of
from nae_monitor.detect.response import Suppression
from nae_monitor.detect.rule_reader import read_rule
from nae_monitor.detect.schema import Rule
from nae_monitor.errors import ConfigurationError, Mark, Problem, RuleError
from nae_monitor.strict_yaml import Document, nearest, read_documents

BUILTIN = "builtin"
SUFFIXES = (".yaml", ".yml")
MAX_FILES = 10_000


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

    def unfit_for(self, base_model: str, layer: int) -> list[Problem]:
        """A problem for each enabled rule that asks for another NLA than this."""
        return [
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


def builtin_rules_directory() -> Path:
    """The shipped packs: ``nae_monitor/rules`` where installed, ``rules/`` in a checkout."""
    installed = importlib.resources.files("nae_monitor").joinpath("rules")
    if isinstance(installed, Path) and installed.is_dir():
        return installed
    return Path(__file__).resolve().parents[2] / "rules"


def load_rules(paths: Sequence[str | Path]) -> RuleSet:
    """Load rule files, directories of them (``*.yaml``, searched throughout) and ``"builtin"``.

    Raises:
        RuleError: every problem of every file, each with file, line and column.
    """
    problems: list[Problem] = []
    documents = [
        document for file in _files(paths, problems) for document in _documents(file, problems)
    ]
    rules: list[tuple[Rule | AggregationRule, Document]] = []
    arranged = arrange(documents, problems)
    for document in arranged:
        rule, found = _read(document)
        problems.extend(found)
        if rule is not None:
            rules.append((rule, document))
    problems.extend(_duplicates(rules))
    plain = [rule for rule, _ in rules if isinstance(rule, Rule)]
    aggregations = [
        _resolved(rule, document, plain, _faulty_names(arranged, rules), problems)
        for rule, document in rules
        if isinstance(rule, AggregationRule)
    ]
    if problems:
        raise RuleError(problems)
    return RuleSet.of(plain, aggregations)


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


def _resolved(
    rule: AggregationRule,
    document: Document,
    rules: Sequence[Rule],
    faulty: frozenset[str],
    problems: list[Problem],
) -> AggregationRule:
    """The aggregation rule with ids turned to names, once every rule it names is known."""
    names = {other.id: other.name for other in rules} | {o.name: o.name for o in rules}
    enabled = {other.name for other in rules if other.enabled}
    resolved: dict[str, tuple[str, ...]] = {}
    for key in ("rules", "absent"):
        for index, name in enumerate(getattr(rule, key)):
            where = document.mark(("aggregation", key, index))
            if name in faulty:
                continue
            if name not in names:
                hint = nearest(name, [other.name for other in rules])
                problems.append(Problem(where, f"no rule {name!r}", hint, "NM110"))
            elif names[name] not in enabled and rule.enabled:
                mend = "enable it, or disable this rule too"
                problems.append(Problem(where, f"the rule {name!r} is disabled", mend))
        resolved[key] = tuple(names.get(name, name) for name in getattr(rule, key))
    return replace(rule, rules=resolved["rules"], absent=resolved["absent"])


def _files(paths: Sequence[str | Path], problems: list[Problem]) -> list[Path]:
    found: dict[Path, Path] = {}  # by resolved path: overlapping paths load a file once
    for path in paths:
        place = builtin_rules_directory() if str(path) == BUILTIN else Path(path)
        files = _files_at(place, problems)
        found.update({file.resolve(): file for file in files if file.resolve() not in found})
    if len(found) > MAX_FILES:
        mend = "name a narrower directory"
        problems.append(Problem(Mark(str(paths[0])), f"{len(found)} rule files", mend))
        return []
    return list(found.values())


def _files_at(place: Path, problems: list[Problem]) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        message = "no such rule file or directory"
        problems.append(Problem(Mark(str(place)), message, f"give a path or {BUILTIN!r}"))
        return []
    files = sorted(file for file in place.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not files:
        problems.append(Problem(Mark(str(place)), "holds no rule file", "rules end in .yaml"))
    return files


def _documents(file: Path, problems: list[Problem]) -> list[Document]:
    try:
        return read_documents(file)
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
