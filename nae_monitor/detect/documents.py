"""Lists, macros, filters and overrides: documents that change what rule documents say.

They are worked into the rule documents before those are read, so that a rule means the same and
its problems have the same places whether a value stands in it or comes from elsewhere::

    list: disguise_words                      macro: defensive
    items: [cover story, false reason]        selection: {keywords: {any: [mitigation]}}

    any: [pretext, {list: disguise_words}]    detection: {talk: {macro: defensive}, …}

    name: red_team_lab                        override: {rule: cyber_misuse, severity: replace}
    filter:                                   severity: high
      rules: [cyber_*]      # names, ids, patterns, or any
      when: {field: request.tenant, keywords: {any: [lab]}}
      reason: contract SEC-114
      expires: 2027-03-31
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from nae_monitor.detect.bounds import CODE
from nae_monitor.detect.expansion import Parts, check_version, value_at
from nae_monitor.detect.reading import Reader
from nae_monitor.errors import Mark, Problem
from nae_monitor.strict_yaml import Document, KeyPath, nearest

CHANGING_KINDS = ("override", "filter", "list", "macro")
# Of overrides and filters together: one for each rule that a pattern is held against, more for
# each change made. Seconds.
MAX_EFFORT, PUT_EFFORT = 5_000_000, 50
FIXED_KEYS = ("id", "name", "schema_version", "override")


def kind_of(document: Document) -> str:
    """``rule``, ``aggregation``, ``override``, ``filter``, ``list`` or ``macro``."""
    keys = document.value if isinstance(document.value, dict) else {}
    if "override" in keys:
        return "override"
    if "aggregation" in keys:
        return "aggregation"
    if "detection" in keys:
        return "rule"
    return next((kind for kind in CHANGING_KINDS if kind in keys), "rule")


def arrange(documents: Iterable[Document], problems: list[Problem]) -> list[Document]:
    """The rule and aggregation documents with everything else worked in, in their order."""
    kinds: dict[str, list[Document]] = {}
    for document in documents:
        kinds.setdefault(kind_of(document), []).append(document)
    parts = Parts(problems)
    for kind in ("list", "macro"):
        for document in kinds.get(kind, ()):
            parts.define(kind, document)
    changed = [_Changed.of(d) for kind in ("rule", "aggregation") for d in kinds.get(kind, ())]
    by_name: dict[str, list[_Changed]] = {}
    for one in changed:
        for name in dict.fromkeys(one.names):
            by_name.setdefault(name, []).append(one)
    effort = _Effort(problems)
    for document in kinds.get("override", ()):
        _override(document, by_name, effort)
    for document in kinds.get("filter", ()):
        _filter(document, changed, effort)
    arranged = [parts.expand(one.document()) for one in changed]
    parts.report_unused_faults()
    return arranged


@dataclass(slots=True)
class _Effort:
    """What overrides and filters may ask for together."""

    problems: list[Problem]
    _left: int = field(default_factory=lambda: MAX_EFFORT)

    def allows(self, amount: int, where: Mark) -> bool:
        """Whether ``amount`` more may be done; a problem the first time it may not."""
        if 0 <= self._left < amount:
            message = "overrides and filters have too much to do: their names times the rules"
            self.problems.append(Problem(where, message, "name fewer rules in each", CODE))
        self._left -= amount
        return self._left >= 0


@dataclass(slots=True, eq=False)
class _Changed:
    """A rule document on its way: copied before its first change."""

    original: Document
    value: Any
    marks: dict[KeyPath, Mark] | None = None

    @classmethod
    def of(cls, document: Document) -> _Changed:
        return cls(document, document.value)

    @property
    def names(self) -> tuple[str, ...]:
        """The handle and the id, where they are text."""
        if not isinstance(self.value, dict):
            return ()
        return tuple(str(self.value[key]) for key in ("name", "id") if key in self.value)

    def document(self) -> Document:
        if self.marks is None:
            return self.original
        return Document(self.value, self.marks, self.original.file)

    def put(self, key: str, source: Document, path: KeyPath, *, append: bool) -> None:
        """Set ``key`` to the value at ``path`` of another document, or append its items."""
        if self.marks is None:
            self.value, self.marks = dict(self.value), dict(self.original.marks)
        new = value_at(source, path)
        before = self.value.get(key) if append else None
        start = len(before) if isinstance(before, list) else 0
        if not start:
            for old in [old for old in self.marks if old[:1] == (key,)]:
                del self.marks[old]
            self.marks[(key,)] = source.mark(path)
        for old, mark in source.marks.items():
            if old[: len(path)] == path and len(old) > len(path):
                rest = old[len(path) :]
                if start and isinstance(rest[0], int):
                    rest = (rest[0] + start, *rest[1:])
                self.marks[(key, *rest)] = mark
        self.value[key] = [*(before or []), *new] if append else new


def _override(document: Document, rules: Mapping[str, Sequence[_Changed]], effort: _Effort) -> None:
    reader = Reader(document, (), effort.problems)
    check_version(reader)
    inner = reader.child("override")
    wanted = inner.text("rule", max_chars=64)
    targets = rules.get(wanted, ())
    if wanted and not targets:
        hint = nearest(wanted, rules)
        inner.fault("rule", f"no rule {wanted!r}", hint, "NM110")
    for key in inner.value:
        if key == "rule":
            continue
        how = inner.choice(key, ("replace", "append"))
        if key in FIXED_KEYS:
            inner.fault(key, f"{key} cannot be overridden", "write a rule of its own")
        elif not reader.has(key):
            inner.fault(key, f"the new value of {key} is missing", f"add `{key}: …`")
        elif how == "append" and not isinstance(reader.value[key], list):
            reader.fault(key, f"{key} is not a list, so it cannot be appended", "use replace")
        elif effort.allows(PUT_EFFORT * len(targets), inner.document.mark()):
            for rule in targets:
                rule.put(key, document, (key,), append=how == "append")
    for key in ("title", "description"):
        reader.has(key)
    if len(inner.value) < 2:
        inner.fault(None, "override changes nothing", "write `severity: replace` or the like")
    reader.finish()


def _filter(document: Document, rules: Sequence[_Changed], effort: _Effort) -> None:
    reader = Reader(document, (), effort.problems)
    check_version(reader)
    name = reader.text("name", max_chars=64)
    for key in ("title", "description", "author", "date", "id"):
        reader.has(key)
    inner = reader.child("filter")
    inner.has("when"), inner.has("reason"), inner.has("expires")
    targets = _targets(inner, rules, effort)
    inner.finish(known=("rules", "when", "reason", "expires"))
    reader.finish()
    exception = {
        key: inner.value[key] for key in ("when", "reason", "expires") if key in inner.value
    }
    marks = {path[1:]: mark for path, mark in document.marks.items() if path[:1] == ("filter",)}
    placed = {("items", 0, *path): mark for path, mark in marks.items() if path[:1] != ("rules",)}
    placed[("items", 0, "name")] = document.mark(("name",))
    source = Document({"items": [{"name": name, **exception}]}, placed, document.file)
    if not effort.allows(PUT_EFFORT * len(targets), document.mark()):
        return
    for rule in targets:
        rule.put("exceptions", source, ("items",), append=True)


def _targets(reader: Reader, rules: Sequence[_Changed], effort: _Effort) -> list[_Changed]:
    if reader.has("rules") and reader.value["rules"] == "any":
        return [rule for rule in rules if kind_of(rule.original) == "rule"]
    patterns = reader.texts("rules", 64)
    if not patterns:
        reader.fault(None, "the filter names no rule", "write `rules: [a_rule]` or `rules: any`")
    if not effort.allows(len(patterns) * len(rules), reader.document.mark()):
        return []
    found: dict[int, _Changed] = {}
    for index, pattern in enumerate(patterns):
        fitting = [r for r in rules if any(fnmatchcase(name, pattern) for name in r.names)]
        if not fitting:
            hint = nearest(pattern, (name for rule in rules for name in rule.names[:1]))
            reader.item_fault("rules", index, f"names no rule: {pattern!r}", hint)
        found.update({id(rule): rule for rule in fitting})
    return [rule for rule in found.values() if kind_of(rule.original) == "rule"]
