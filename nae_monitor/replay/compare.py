"""What two runs over the same rows say differently."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nae_monitor.recording import (
    Recording,
    canonical_line,
    finding_sort_key,
    finding_to_json,
)
from nae_monitor.records import Finding
from nae_monitor.replay.scope import Scope


@dataclass(frozen=True, slots=True)
class Comparison:
    """Findings by what became of them, each list in (request id, position, rule) order."""

    new: tuple[Finding, ...]
    gone: tuple[Finding, ...]
    changed: tuple[tuple[Finding, Finding], ...]  # before, after
    same: int

    @property
    def identical(self) -> bool:
        """Whether the runs found the same, byte for byte once sorted."""
        return not (self.new or self.gone or self.changed)


def compare(before: Path | str, after: Path | str) -> Comparison:
    """Compare the findings of two run directories.

    A finding is the same row's answer to the same rule: (request id, position, rule id). Where
    ``after`` was replayed with a filter, only rows that it let through are compared.

    Raises:
        RecordingError: either run cannot be read.
    """
    later = Recording.open(after)
    old, new = _by_key(Scope(later).findings(Recording.open(before))), _by_key(later.findings())
    added: list[Finding] = []
    gone: list[Finding] = []
    changed: list[tuple[Finding, Finding]] = []
    same = 0
    for key in sorted(old.keys() | new.keys()):
        left, right = old.get(key, []), new.get(key, [])
        lines = {_line(finding) for finding in left} & {_line(finding) for finding in right}
        same += len(lines)
        left = [finding for finding in left if _line(finding) not in lines]
        right = [finding for finding in right if _line(finding) not in lines]
        pairs = min(len(left), len(right))
        changed.extend(zip(left[:pairs], right[:pairs], strict=True))
        gone.extend(left[pairs:])
        added.extend(right[pairs:])
    return Comparison(tuple(added), tuple(gone), tuple(changed), same)


def _line(finding: Finding) -> str:
    return canonical_line(finding_to_json(finding))


def _by_key(findings: Iterable[Finding]) -> dict[tuple[str, int, str], list[Finding]]:
    found: dict[tuple[str, int, str], list[Finding]] = defaultdict(list)
    for finding in sorted(findings, key=finding_sort_key):
        found[(finding.request_id, finding.position, finding.rule_id)].append(finding)
    return found
