"""A lock file: the version and content of every rule, so that no rule changes under its version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from nae_monitor.detect.aggregation import AggregationRule
from nae_monitor.detect.packs import RuleSet
from nae_monitor.detect.schema import Rule
from nae_monitor.errors import InputDataError

LOCK_VERSION = 1
MAX_LOCK_BYTES = 16 * 1024 * 1024
_NOT_CONTENT = ("version", "tests")  # examples may be added without a new version

Lock = Mapping[str, Mapping[str, str]]


def content_sha256(rule: Rule | AggregationRule) -> str:
    """The hash of what a rule says, without its version and its tests."""
    content = {key: value for key, value in rule.canonical.items() if key not in _NOT_CONTENT}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def lock_of(rule_set: RuleSet) -> Lock:
    """The lock of a rule set, aggregation rules included, by rule id."""
    return {
        rule.id: {"name": rule.name, "version": rule.version, "sha256": content_sha256(rule)}
        for rule in rule_set.every
    }


def lock_faults(locked: Lock, now: Lock) -> list[str]:
    """Rules that changed without a higher version, or whose version went down; one line each."""
    faults: list[str] = []
    for rule_id, entry in now.items():
        old = locked.get(rule_id)
        if old is None:
            continue
        was, version = old["version"], entry["version"]
        if entry["sha256"] != old["sha256"] and not _higher(version, was):
            faults.append(f"{entry['name']}: changed, and its version is {version} after {was}")
        elif version != was and not _higher(version, was):
            faults.append(f"{entry['name']}: its version went from {was} to {version}")
    return faults


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
        keys = ("name", "version", "sha256")
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in keys):
            raise InputDataError(f"{path}: is damaged; write it anew with `rules lock`")
    return rules
