"""What changed between two rule sets: in what they say, and in what they find."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nae_monitor.detect.engine import Judge
from nae_monitor.detect.packs import RuleSet
from nae_monitor.detect.tools.corpus import Sample
from nae_monitor.records import Finding

Kind = Literal["added", "removed", "changed"]
ABSENT = "(absent)"


@dataclass(frozen=True, slots=True)
class RuleChange:
    """One rule that is not the same; ``keys`` are the changed places with old and new value."""

    kind: Kind
    rule_id: str
    rule_name: str
    keys: tuple[tuple[str, Any, Any], ...] = ()
    version_raised: bool = True  # False: it changed under the same version


@dataclass(frozen=True, slots=True)
class VerdictChange:
    """One finding that is new, lost, or of another severity or state."""

    kind: Literal["new", "lost", "changed"]
    sample_id: str
    rule_name: str
    old: str  # "severity state"; "" where there was none
    new: str


def rule_changes(old: RuleSet, new: RuleSet) -> list[RuleChange]:
    """Rules matched by id, in the order of their ids."""
    before = {rule.id: rule for rule in old.rules}
    after = {rule.id: rule for rule in new.rules}
    found: list[RuleChange] = []
    for rule_id in sorted(before.keys() | after.keys()):
        if rule_id not in before:
            found.append(RuleChange("added", rule_id, after[rule_id].name))
        elif rule_id not in after:
            found.append(RuleChange("removed", rule_id, before[rule_id].name))
        else:
            was, now = before[rule_id], after[rule_id]
            keys = tuple(_changed(was.canonical, now.canonical, ""))
            if keys:
                raised = was.version != now.version
                found.append(RuleChange("changed", rule_id, now.name, keys, raised))
    return found


def _changed(old: Any, new: Any, path: str) -> Iterable[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{path}.{key}" if path else str(key)
            yield from _changed(old.get(key, ABSENT), new.get(key, ABSENT), inner)
    elif old != new:
        yield path, old, new


def verdict_changes(old: Judge, new: Judge, samples: Iterable[Sample]) -> list[VerdictChange]:
    """What the two judges say differently of the same samples, matched by rule id."""
    found: list[VerdictChange] = []
    for sample in samples:
        given = (sample.activation, sample.decoding, sample.transcript)
        before = {finding.rule_id: finding for finding in old.judge(*given)}
        after = {finding.rule_id: finding for finding in new.judge(*given)}
        for rule_id in sorted(before.keys() | after.keys()):
            change = _verdict_change(sample.id, before.get(rule_id), after.get(rule_id))
            if change is not None:
                found.append(change)
    return found


def _verdict_change(
    sample_id: str, old: Finding | None, new: Finding | None
) -> VerdictChange | None:
    was, now = _weight(old), _weight(new)
    if was == now:
        return None
    kind: Literal["new", "lost", "changed"] = "changed" if was and now else "new" if now else "lost"
    name = (new or old).rule_name  # type: ignore[union-attr]
    return VerdictChange(kind, sample_id, name, was, now)


def _weight(finding: Finding | None) -> str:
    return "" if finding is None else f"{finding.severity.value} {finding.state.value}"
