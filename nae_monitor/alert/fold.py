"""Fold the findings of one request and one rule into one alert."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from nae_monitor.records import Alert, Evidence, Finding, FindingState, Request

ALERT_NAMESPACE = uuid.UUID("6ad4cbcb-16a8-5f0c-9b0e-54ae2f2d6a53")
_PROCESS_SEQUENCE = itertools.count()


def alert_id(request: Request, rule_id: str, first_position: int) -> str:
    """The deterministic id of an alert: UUID version 5 (RFC 9562) over where it arose.

    The start of the request's turn is part of it: an id that is used again is another alert's.
    """
    # Lengths keep ("a", "bc") and ("ab", "c") apart, whatever the ids contain.
    name = (
        f"{len(request.request_id)}:{request.request_id}{request.started_unix_ns}"
        f"/{len(rule_id)}:{rule_id}{first_position}"
    )
    return str(uuid.uuid5(ALERT_NAMESPACE, name.encode("utf-8", "surrogatepass").hex()))


@dataclass(slots=True)
class _Fold:
    """What is known so far of one rule in one request."""

    finding: Finding
    first_position: int
    last_position: int
    count: int = 0
    evidence: list[Evidence] = field(default_factory=list)

    def add(self, finding: Finding, evidence: Evidence, max_evidence: int) -> None:
        self.count += 1
        self.first_position = min(self.first_position, finding.position)
        self.last_position = max(self.last_position, finding.position)
        if finding.severity.rank > self.finding.severity.rank:
            self.finding = finding
        self.evidence = sorted([*self.evidence, evidence], key=_worth)[:max_evidence]


def _worth(evidence: Evidence) -> tuple[int, bool, bool, float, int]:
    """Sort key, best first: severity, a known P(unsupported), a known and high FVE, position.

    That it is known counts and not how low it is: the lowest of many would look too good.
    """
    finding = evidence.finding
    unasked, unknown = finding.unsupported is None, evidence.fve is None
    return (-finding.severity.rank, unasked, unknown, -(evidence.fve or 0.0), finding.position)


class AlertFolder:
    """Collects matches and turns each (request, rule) into one :class:`Alert`. Thread-safe.

    Memory is bounded by ``max_open_requests`` times the number of rules times ``max_evidence``:
    when one request too many is open, the one that has waited longest for a finding is closed
    early and its alerts come out of :meth:`add`.
    """

    def __init__(
        self,
        nla_id: str,
        *,
        max_evidence: int = 3,
        max_open_requests: int = 1000,
        now_unix_ns: Callable[[], int] = time.time_ns,
        sequence: Iterator[int] = _PROCESS_SEQUENCE,
    ) -> None:
        if max_evidence < 1 or max_open_requests < 1:
            raise ValueError("max_evidence and max_open_requests are at least 1")
        self._nla_id = nla_id
        self._max_evidence = max_evidence
        self._max_open_requests = max_open_requests
        self._now_unix_ns = now_unix_ns
        self._sequence = sequence
        self._lock = threading.Lock()
        self._open: dict[str, tuple[Request, dict[str, _Fold]]] = {}

    def add(self, finding: Finding, evidence: Evidence, request: Request) -> list[Alert]:
        """Take one finding; anything but a match is ignored (it is counted elsewhere).

        Returns:
            the alerts of the requests that had to be closed to make room; usually none.
        """
        if finding.state is not FindingState.MATCH:
            return []
        key = request.request_id
        with self._lock:
            flushed: list[Alert] = []
            # Re-inserting keeps the dict in order of the last finding, oldest first.
            entry = self._open.pop(key, None)
            while entry is None and len(self._open) >= self._max_open_requests:
                flushed += self._close(next(iter(self._open)))
            _, folds = self._open[key] = entry or (request, {})
            fold = folds.get(finding.rule_id)
            if fold is None:
                place = finding.position
                fold = folds[finding.rule_id] = _Fold(finding, place, place)
            fold.add(finding, evidence, self._max_evidence)
            return flushed

    def finish(self, request_id: str) -> list[Alert]:
        """The alerts of one request, most severe first; none if no rule matched."""
        with self._lock:
            return self._close(request_id)

    def finish_all(self) -> list[Alert]:
        """The alerts of every open request, in the order of their last finding."""
        with self._lock:
            return [alert for key in list(self._open) for alert in self._close(key)]

    def _close(self, request_id: str) -> list[Alert]:
        request, folds = self._open.pop(request_id, (None, {}))
        if request is None:
            return []
        ordered = sorted(
            folds.values(),
            key=lambda f: (-f.finding.severity.rank, f.first_position, f.finding.rule_id),
        )
        return [self._alert(request, fold) for fold in ordered]

    def _alert(self, request: Request, fold: _Fold) -> Alert:
        finding = fold.finding
        return Alert(
            alert_id=alert_id(request, finding.rule_id, fold.first_position),
            request=request,
            rule_id=finding.rule_id,
            rule_name=finding.rule_name,
            rule_version=finding.rule_version,
            title=finding.title,
            severity=finding.severity,
            risk_score=finding.risk_score,
            tags=finding.tags,
            first_position=fold.first_position,
            last_position=fold.last_position,
            count=fold.count,
            held_back=0,
            evidence=tuple(fold.evidence),
            nla_id=self._nla_id,
            sequence=next(self._sequence),
            time_unix_ns=self._now_unix_ns(),
            routes=finding.routes,
        )
