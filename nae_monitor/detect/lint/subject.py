"""What a check looks at: one document, the rule it makes, and what lint was told about its use."""

from __future__ import annotations

import datetime
import importlib.resources
from dataclasses import dataclass, field
from typing import Any

from nae_monitor.detect.schema import Rule
from nae_monitor.detect.semantic import Encoder
from nae_monitor.errors import Mark
from nae_monitor.strict_yaml import Document, KeyPath


@dataclass(frozen=True, slots=True)
class LintOptions:
    """Facts from outside the rules.

    ``sampled_share`` is the share of a request's tokens that is decoded; None: not known, and
    counts are not held against it.
    """

    today: datetime.date = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).date())
    sampled_share: float | None = None
    encoder: Encoder | None = None


@dataclass(frozen=True, slots=True)
class LintSubject:
    """One document of a rule file. ``rule`` is None where it holds another kind."""

    document: Document
    rule: Rule | None
    options: LintOptions

    def mark(self, *path: str | int) -> Mark:
        """Where ``path`` stands."""
        return self.document.mark(path)

    def get(self, *path: str | int) -> Any:
        """The plain value at ``path``; None where there is none."""
        return value_at(self.document.value, path)

    def selection_paths(self) -> list[tuple[str, KeyPath]]:
        """Name and place of every selection, those written inside exceptions included."""
        found: list[tuple[str, KeyPath]] = []
        if isinstance(detection := self.get("detection"), dict):
            found = [(name, ("detection", name)) for name in detection if name != "condition"]
        for index, exception in enumerate(self.get("exceptions") or ()):
            if isinstance(exception, dict) and isinstance(exception.get("when"), dict):
                found.append((f"exception.{exception.get('name')}", ("exceptions", index, "when")))
        return [(name, path) for name, path in found if isinstance(self.get(*path), dict)]


def value_at(value: Any, path: KeyPath) -> Any:
    """The value at ``path`` of nested mappings and lists; None where there is none."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def benign_texts() -> tuple[str, ...]:
    """The bundled corpus: explanations of ordinary messages, one a line."""
    file = importlib.resources.files("nae_monitor.detect.lint").joinpath("benign.txt")
    return tuple(line for line in file.read_text("utf-8").splitlines() if line.strip())
