"""Finds rule files and loads them as one set, every problem of every file at once."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nae_monitor.detect.rule_reader import read_rule
from nae_monitor.detect.schema import Rule
from nae_monitor.errors import ConfigurationError, Mark, Problem, RuleError
from nae_monitor.strict_yaml import Document, read_documents

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

    @classmethod
    def of(cls, rules: Iterable[Rule]) -> RuleSet:
        """Order the rules and take their fingerprint."""
        ordered = tuple(sorted(rules, key=lambda rule: rule.id))
        content = [rule.canonical for rule in ordered]
        text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
        return cls(ordered, hashlib.sha256(text.encode()).hexdigest())

    def __len__(self) -> int:
        return len(self.rules)


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
    rules: list[tuple[Rule, Document]] = []
    for file in _files(paths, problems):
        for document in _documents(file, problems):
            rule, found = read_rule(document)
            problems.extend(found)
            if rule is not None:
                rules.append((rule, document))
    problems.extend(_duplicates(rules))
    if problems:
        raise RuleError(problems)
    return RuleSet.of(rule for rule, _ in rules)


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


def _duplicates(rules: Sequence[tuple[Rule, Document]]) -> list[Problem]:
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
