"""A lock file: the version and content of every rule, so that no rule changes under its version.

The vectors that a rule compares activations with are content, too: they are held by their digests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from packaging.version import InvalidVersion, Version

from nae_monitor.detect.aggregation import AggregationRule
from nae_monitor.detect.packs import RuleSet
from nae_monitor.detect.schema import Rule
from nae_monitor.errors import InputDataError

LOCK_VERSION = 1
MAX_LOCK_BYTES = 16 * 1024 * 1024
_NOT_CONTENT = ("version", "tests")  # examples may be added without a new version

Lock = Mapping[str, Mapping[str, Any]]  # rule id -> name, version, sha256, directions
_TEXTS = ("name", "version", "sha256")


def content_sha256(rule: Rule | AggregationRule) -> str:
    """The hash of what a rule says, without its version and its tests."""
    content = {key: value for key, value in rule.canonical.items() if key not in _NOT_CONTENT}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def lock_of(rule_set: RuleSet, locked: Lock = MappingProxyType({})) -> Lock:
    """The lock of a rule set, aggregation rules included, by rule id.

    Of directions whose file is not there, what ``locked`` knows is kept.
    """
    return {rule.id: _entry(rule, locked.get(rule.id, {})) for rule in rule_set.every}


def _entry(rule: Rule | AggregationRule, locked: Mapping[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": rule.name, "version": rule.version}
    entry["sha256"] = content_sha256(rule)
    directions = {d.source: d.digest for d in rule.directions()} if isinstance(rule, Rule) else {}
    if directions:
        known = locked.get("directions", {})
        entry["directions"] = {
            source: digest or known.get(source, "") for source, digest in directions.items()
        }
    return entry


def missing_directions(rule_set: RuleSet) -> list[str]:
    """Directions that cannot be held to a version because their file is not there; a line each."""
    return [
        f"{rule.name}: {direction.source} is not there, so its content cannot be checked"
        for rule in rule_set.rules
        for direction in rule.directions()
        if direction.vector is None
    ]


def lock_faults(locked: Lock, now: Lock) -> list[str]:
    """Rules that changed without a higher version, or whose version went down; one line each."""
    faults: list[str] = []
    for rule_id, entry in now.items():
        old = locked.get(rule_id)
        if old is None:
            continue
        was, version = old["version"], entry["version"]
        changed = "" if entry["sha256"] == old["sha256"] else "changed"
        if moved := _changed_directions(old, entry):
            changed = changed or f"its direction {moved[0]} changed"
        if changed and not _higher(version, was):
            faults.append(f"{entry['name']}: {changed}, and its version is {version} after {was}")
        elif version != was and not _higher(version, was):
            faults.append(f"{entry['name']}: its version went from {was} to {version}")
    return faults


def _changed_directions(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Directions known on both sides that are not the same vector any more."""
    before = old.get("directions", {})
    now = new.get("directions", {})
    return [s for s in sorted(now) if before.get(s) and now[s] and before[s] != now[s]]


def _higher(new: str, old: str) -> bool:
    try:
        return Version(new) > Version(old)
    except InvalidVersion:  # any other text: a new one counts as raised
        return new != old


def lock_text(lock: Lock) -> str:
    """The lock file's content: stable, one rule a line block."""
    return (
        json.dumps({"lock_version": LOCK_VERSION, "rules": lock}, indent=2, sort_keys=True) + "\n"
    )


def read_lock(path: Path) -> Lock:
    """Read a lock file.

    Raises:
        InputDataError: not a lock file of this version.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LOCK_BYTES + 1)
        value: Any = json.loads(data.decode("utf-8"))
    except OSError as error:
        raise InputDataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputDataError(f"{path}: is not a lock file") from error
    rules = value.get("rules") if isinstance(value, dict) else None
    if not isinstance(rules, dict) or value.get("lock_version") != LOCK_VERSION:
        raise InputDataError(f"{path}: is not a lock file of version {LOCK_VERSION}")
    for entry in rules.values():
        if not _is_entry(entry):
            raise InputDataError(f"{path}: is damaged; write it anew with `rules lock`")
    return rules


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in _TEXTS):
        return False
    directions = entry.get("directions", {})
    return isinstance(directions, dict) and all(isinstance(d, str) for d in directions.values())
