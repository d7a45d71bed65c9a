"""What changed between two rule sets: in what they say, and in what they find."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nae_monitor.detect.engine import Judge
from nae_monitor.detect.packs import RuleSet
from nae_monitor.detect.tools.corpus import Sample
from nae_monitor.detect.tools.windows import CorpusWindows, names_by_state
from nae_monitor.records import Finding

Kind = Literal["added", "removed", "changed"]
ABSENT = "(absent)"
_ByRule = dict[str, Finding]


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
    """Rules and aggregation rules matched by id, in the order of their ids."""
    before = {rule.id: rule for rule in old.every}
    after = {rule.id: rule for rule in new.every}
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
    """What the two sides say differently of the same samples, matched by rule id.

    Changes of single samples come first, in their order; those of aggregation rules follow, by
    request and the position their window ends at.
    """
    sides = _Side(old), _Side(new)
    found: list[VerdictChange] = []
    for sample in samples:
        before, after = (side.judge(sample) for side in sides)
        found += _changes(sample.id, before, after)
    windows = [side.finish() for side in sides]
    for request_id, position in sorted(windows[0].keys() | windows[1].keys()):
        before, after = (of_side.get((request_id, position), {}) for of_side in windows)
        found += _changes(f"{request_id}:{position}", before, after)
    return found


class _Side:
    """One rule set over the samples: its judge, and its aggregation rules behind it."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._windows = CorpusWindows(judge.rule_set)
        self._found: dict[tuple[str, int], _ByRule] = {}

    def judge(self, sample: Sample) -> _ByRule:
        activation = sample.activation
        findings = self._judge.judge(activation, sample.decoding, sample.transcript)
        self._keep(self._windows.take(activation, *names_by_state(findings)))
        return {finding.rule_id: finding for finding in findings}

    def finish(self) -> dict[tuple[str, int], _ByRule]:
        """The findings of aggregation rules by request and position; the last answer stands."""
        self._keep(self._windows.finish())
        return self._found

    def _keep(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            place = finding.request_id, finding.position
            self._found.setdefault(place, {})[finding.rule_id] = finding


def _changes(sample_id: str, before: _ByRule, after: _ByRule) -> Iterator[VerdictChange]:
    for rule_id in sorted(before.keys() | after.keys()):
        change = _verdict_change(sample_id, before.get(rule_id), after.get(rule_id))
        if change is not None:
            yield change


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
