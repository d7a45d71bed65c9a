"""How often requests were found, before and after: by rule, model, tenant and day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nae_monitor.detect.tools.rates import Rate
from nae_monitor.recording import Recording
from nae_monitor.records import FindingState
from nae_monitor.replay.scope import Scope

KINDS = ("all", "rule", "model", "tenant", "day")
UNKNOWN = "unknown"
_COLUMNS = ["request_id", "model", "tenant", "started_unix_ns"]
_Place = tuple[str, str]  # kind and value


@dataclass(frozen=True, slots=True)
class RateChange:
    """Requests with a match among all requests of one kind, in either run."""

    kind: str  # of KINDS; for "rule" a match of that rule counts, else of any
    value: str
    before: Rate
    after: Rate

    @property
    def apart(self) -> bool:
        """Whether the two 95 % intervals do not touch. The requests being the same, that is a
        harder test than need be.
        """
        (low, high), (other_low, other_high) = self.before.interval, self.after.interval
        return high < other_low or other_high < low


def breakdown(before: Path | str, after: Path | str) -> list[RateChange]:
    """Both runs over the requests of ``after``; by kind, then by value.

    Raises:
        RecordingError: either run cannot be read.
    """
    new = Recording.open(after)
    scope = Scope(new)
    old = _counts(Recording.open(before), scope)
    now = _counts(new, scope)
    return [
        RateChange(kind, value, _rate(old, kind, value), _rate(now, kind, value))
        for kind, value in sorted(
            old.hits | now.hits | old.requests | now.requests,
            key=lambda place: (KINDS.index(place[0]), place[1]),
        )
    ]


@dataclass(frozen=True, slots=True)
class _Counts:
    requests: Counter[_Place]
    hits: Counter[_Place]


def _rate(counts: _Counts, kind: str, value: str) -> Rate:
    trials = counts.requests["all", ""] if kind == "rule" else counts.requests[kind, value]
    return Rate(min(counts.hits[kind, value], trials), trials)


def _counts(run: Recording, scope: Scope) -> _Counts:
    groups = {
        request_id: places for request_id, places in _requests(run) if request_id in scope.requests
    }
    matched: dict[str, set[str]] = {}
    for finding in scope.findings(run):
        if finding.state is FindingState.MATCH and finding.request_id in groups:
            matched.setdefault(finding.request_id, set()).add(finding.rule_name)
    counts = _Counts(Counter(), Counter())
    for request_id, places in groups.items():
        counts.requests.update(places)
        if rules := matched.get(request_id):
            counts.hits.update(places)
            counts.hits.update(("rule", rule) for rule in rules)
    return counts


def _requests(run: Recording) -> Iterator[tuple[str, tuple[_Place, ...]]]:
    """Each request of a run with the groups it counts in; as of its latest turn."""
    for part in run.request_parts:
        for row in part.table(_COLUMNS).to_pylist():
            yield row["request_id"], _places(row)
    if not run.request_parts:
        for row in run.activation_columns(_COLUMNS):
            yield row["request_id"], _places(row)


def _places(row: Mapping[str, object]) -> tuple[_Place, ...]:
    began, day = row["started_unix_ns"], UNKNOWN
    if isinstance(began, int) and 0 < began < 2**62:
        day = datetime.fromtimestamp(began / 1e9, UTC).date().isoformat()
    return (
        ("all", ""),
        ("model", str(row["model"] or UNKNOWN)),
        ("tenant", str(row["tenant"] or UNKNOWN)),
        ("day", day),
    )
