"""What rules may take together: a bound on one pattern is none on a hundred thousand of them.

Counted over every rule of a set as it is written, lists and macros put in, before anything is
compiled. A set near its bounds loads in some seconds and takes half a gigabyte, but for its
sentences, which the encoder reads at the start; the largest benchmark's rules are half of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nae_monitor.errors import Mark, Problem
from nae_monitor.strict_yaml import Document

CODE = "NM105"
MAX_SET_BYTES = 64 * 1024 * 1024  # of all files, read and watched
MAX_SET_VALUES = 1_000_000  # of all documents
MAX_PROGRAM = 2_000_000  # RE2 instructions of all patterns, 16 bytes each
MAX_RULE_PROGRAM = 500_000  # of one rule
BOUNDS: Mapping[str, int] = MappingProxyType(
    {
        "keywords": 100_000,
        "characters of keywords": 2_000_000,  # an automaton's node each
        "patterns": 5_000,  # of up to half a megabyte each while they search
        "characters of patterns": 4_000_000,
        "fuzzy phrases": 20_000,
        "characters of fuzzy phrases": 1_000_000,  # a trigram each, looked up for every text
        "sentences": 5_000,  # through the encoder at the start, some milliseconds each
        "characters of sentences": 500_000,
        "directions": 1_000,  # a file opened for each
        "views": 200,  # field, quotes and case: each has engines of its own
    }
)
SHOWN_RULES = 3  # that use most
_LISTS = (
    ("keywords", ("keywords", "any")),
    ("keywords", ("keywords", "all")),
    ("patterns", ("regex",)),
    ("fuzzy phrases", ("fuzzy", "any")),
    ("sentences", ("semantic", "exemplars")),
    ("sentences", ("semantic", "negatives")),
)


def over_bounds(rules: Sequence[Document]) -> list[Problem]:
    """A problem for each bound that the rule documents break together; it names who uses most."""
    used: list[Counter[str]] = []
    views: set[str] = set()
    for document in rules:
        found: Counter[str] = Counter()
        for selection in _selections(document.value):
            view = "/".join(str(selection.get(key))[:200] for key in ("field", "quotes", "case"))
            found["views"] += view not in views
            views.add(view)
            for name, amount in _uses(selection):
                found[name] += amount
        used.append(found)
    tables = {name: [(d, u[name]) for d, u in zip(rules, used, strict=True)] for name in BOUNDS}
    return [p for name, limit in BOUNDS.items() for p in over_bound(name, limit, tables[name])]


def over_bound(name: str, limit: int, used: Sequence[tuple[Document, int]]) -> list[Problem]:
    """A problem where documents use more of something than ``limit`` together."""
    total = sum(amount for _, amount in used)
    if total <= limit:
        return []
    most = sorted(used, key=lambda one: -one[1])[:SHOWN_RULES]
    users = ", ".join(f"{_name_of(d)} ({d.mark()}) {amount}" for d, amount in most if amount)
    message = f"the rules hold {total} {name} together; at most {limit}; most are in {users}"
    return [Problem(most[0][0].mark(), message, "split the set, or shorten it", CODE)]


def over_bytes(files: Sequence[Path]) -> list[Problem]:
    """A problem where rule files are larger together than is read."""
    sizes = [(file, _bytes_of(file)) for file in files]
    total = sum(size for _, size in sizes)
    if total <= MAX_SET_BYTES:
        return []
    most = sorted(sizes, key=lambda one: -one[1])[:SHOWN_RULES]
    users = ", ".join(f"{file} {size}" for file, size in most)
    message = f"the rule files hold {total} bytes together; at most {MAX_SET_BYTES}"
    where = Mark(str(most[0][0]))
    return [Problem(where, f"{message}; the largest are {users}", "split the set", CODE)]


def _bytes_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # reading it will say so
        return 0


def _selections(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every selection of a rule as it is written, those inside exceptions included."""
    rule = value if isinstance(value, dict) else {}
    detection, exceptions = rule.get("detection"), rule.get("exceptions")
    found = list(detection.values()) if isinstance(detection, dict) else []
    for exception in exceptions if isinstance(exceptions, list) else ():
        found.append(exception.get("when") if isinstance(exception, dict) else None)
    return (one for one in found if isinstance(one, dict))


def _uses(selection: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, path in _LISTS:
        items: Any = selection
        for key in path:
            items = items.get(key) if isinstance(items, dict) else None
        if isinstance(items, list):
            texts = [item for item in items if isinstance(item, str)]
            yield name, len(texts)
            yield f"characters of {name}", sum(len(text) for text in texts)
    yield "directions", int("activation" in selection)


def _name_of(document: Document) -> str:
    value = document.value
    name = value.get("name") if isinstance(value, dict) else None
    return name[:64] if isinstance(name, str) else "a rule"
